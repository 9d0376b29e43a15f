"""Trained models as files in the formats of others, and back: safetensors, GPT-2, the course's.

Nothing here trains; a run's own checkpoints are in `trainer.checkpoints`.
"""
