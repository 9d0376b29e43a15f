"""Text from a trained model: decoding and sampling.

Nothing here trains.
"""
