"""Runs carried out: executors, workers, the dispatcher that records what they report.

What to run is decided elsewhere.
"""
