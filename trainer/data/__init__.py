"""From documents to batches: sources, tokenizers, token shards, the cache, samplers.

No model and no optimiser is known here.
"""
