"""Figures of the report, each a function of facts; `reports.sections` says where they stand.

Nothing here reads a database or writes a file.
"""
