"""Samplers, and proposals as pure functions of (seed, number, results so far).

Nothing here trains or writes runs.
"""
