"""Reports: read the database, draw, explain."""
