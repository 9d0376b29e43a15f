"""Optimisers and learning-rate schedules.

No model, no data: they see parameters and step numbers.
"""
