"""Update rules that torch lacks. They load torch, so the registry of optimisers skips this folder.

No model is known here.
"""
