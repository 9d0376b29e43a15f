"""The report of a study: it reads the database, draws and explains.

Nothing here trains, fits or writes a table.
"""
