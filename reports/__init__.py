"""Reports: read the database, draw, explain.

Nothing here trains, fits or writes a table.
"""
