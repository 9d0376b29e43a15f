"""The machine that a run has: device, memory of the process, threads, compilation.

Nothing here knows what is trained.
"""
