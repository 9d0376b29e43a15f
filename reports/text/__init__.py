"""Sentences and tables of the report, and its advice.

Nothing here draws.
"""
