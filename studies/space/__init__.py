"""What a search may vary: the search space, its defaults for a budget, the budget levels.

No sampler and no database here.
"""
