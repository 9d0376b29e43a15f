"""Problems that a learning curve shows: verdicts with their evidence, and what to do.

A diagnosis is a pure function of a curve and a few facts; nothing here trains or needs torch.
"""
