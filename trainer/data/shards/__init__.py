"""Token shards on disk: documents to blocks, blocks to shards, shards to arrays.

Nothing here knows where a text comes from or what is trained on it.
"""
