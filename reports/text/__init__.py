"""Sentences and tables of the report, and its advice, each a function of facts.

Nothing here draws, and nothing reads a database.
"""
