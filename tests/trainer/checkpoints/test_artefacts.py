"""What a finished run leaves, read back."""

from pathlib import Path

import pytest
import torch

from budgetsweep.errors import CheckpointError
from model.decoder import DecoderLM
from tests.support.tiny_runs import tiny_config
from trainer.checkpoints.artefacts import curve_csv
from trainer.events import Point
from trainer.export.weights import model_of_weights, read_weights

SHAPE = tiny_config().model


def loaded_from(path: Path) -> DecoderLM:
    return model_of_weights(read_weights(path), SHAPE, path)


def test_weights_come_back(tmp_path: Path) -> None:
    model = DecoderLM.from_config(SHAPE).eval()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    ids = torch.arange(12).view(1, 12)
    loaded = loaded_from(tmp_path / "model.pt").eval()
    assert torch.equal(loaded(ids), model(ids))


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 cut"])
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        loaded_from(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_missing_and_misshapen_weights_are_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with pytest.raises(CheckpointError, match="cannot be read"):
        loaded_from(path)
    other = SHAPE.model_copy(update={"n_embd": 32})
    torch.save(DecoderLM.from_config(other).state_dict(), path)
    with pytest.raises(CheckpointError, match="does not fit the model") as caught:
        loaded_from(path)
    assert "\n" not in str(caught.value)
    torch.save([1, 2, 3], path)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        loaded_from(path)


def test_the_curve_says_nothing_where_nothing_was_measured() -> None:
    text = curve_csv([Point(step=1, tokens=2, flops=10**25, seconds=0.5, lr=1e-4)])
    header, row = text.splitlines()
    assert header == "step,tokens,flops,seconds,train_loss_nats,val_loss_nats,lr,grad_norm"
    assert row == f"1,2,{10**25},0.5,,,0.0001,"
