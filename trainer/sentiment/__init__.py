"""Zero-shot sentiment with a language model: labelled texts, decisions, accuracy.

Nothing here trains.
"""
