"""The final run at a larger budget: which trial, with which settings, and its prediction.

The fit itself is in `studies.scaling`.
"""
