"""The scaling law of finished runs: its data points, its fit, and the losses that it predicts.

Nothing here trains, chooses a trial for the user or writes to the database; nothing needs torch.
"""
