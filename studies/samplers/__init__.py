"""What to try next: Optuna samplers, ours and its own, each a function of (seed, number, results).

Nothing here decides whether a proposal is admitted, runs it or keeps a record of it.
"""
