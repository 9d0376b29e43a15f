"""What a run writes to its folder: checkpoints to go on from, artefacts at its end.

Formats of others are in `trainer.export`.
"""
