"""The machine of a run: device, memory of the process, threads, compilation.

Nothing here knows what is trained.
"""
