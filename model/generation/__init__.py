"""Text from a trained model: decoding, sampling, the key-value cache.

Nothing here trains.
"""
