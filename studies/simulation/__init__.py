"""Runs that nobody trains: simulated worlds, and tables of finished runs, as backends.

Nothing outside this package but `studies.backends` and the command line knows that a run is one.
"""
