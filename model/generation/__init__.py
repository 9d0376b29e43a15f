"""Continuing texts with a trained model: decoding, sampling, the key-value cache.

Nothing here trains, and nothing reads or writes a file.
"""
