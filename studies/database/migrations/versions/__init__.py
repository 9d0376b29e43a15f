"""Numbered changes of the tables, oldest first."""
