"""What a finished run leaves, read back."""

from trainer.checkpoints.artefacts import curve_csv
from trainer.events import Point


def test_the_curve_says_nothing_where_nothing_was_measured() -> None:
    text = curve_csv([Point(step=1, tokens=2, flops=10**25, seconds=0.5, lr=1e-4)])
    header, row = text.splitlines()
    assert header == "step,tokens,flops,seconds,train_loss_nats,val_loss_nats,lr,grad_norm"
    assert row == f"1,2,{10**25},0.5,,,0.0001,"
