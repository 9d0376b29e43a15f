"""Token shards on disk: documents to blocks, blocks to shards, shards to arrays.

Nothing here knows where a document comes from or what is trained on it.
"""
