"""Runs carried out: executors, their workers, and the dispatcher that records what they report.

What to run is decided in `studies.samplers`, `studies.promotion` and `studies.trials`; an executor
opens no database.
"""
