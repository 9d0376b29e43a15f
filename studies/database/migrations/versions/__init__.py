"""Numbered changes of the tables, oldest first, one file each.

A file that was released is never edited: a change of the tables is a new file.
"""
