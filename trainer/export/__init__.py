"""Trained models as files: ours, the course's, safetensors, GPT-2 of `transformers`.

Nothing here trains.
"""
