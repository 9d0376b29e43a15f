"""One training run: data, optimiser, loop, checkpoints, evaluation."""
