"""Figures of the report, each a function of facts.

Nothing here reads a database or writes a file.
"""
