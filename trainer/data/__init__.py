"""From a source of text to batches: tokenizers, token shards, the cache, samplers.

No model and no optimiser is known here.
"""
