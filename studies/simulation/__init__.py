"""Runs that nobody trains: simulated worlds and tables of finished runs.

Nothing outside this package knows that a run is one of them.
"""
