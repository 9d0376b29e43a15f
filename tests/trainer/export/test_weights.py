"""Weights files of ours and of the course, whole and broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from budgetsweep.errors import CheckpointError, ConfigError
from model.config import ModelConfig
from model.decoder import DecoderLM
from tests.support.data_files import Evil
from tests.support.reference_course import CourseLM
from trainer.export.weights import model_of_weights, read_weights, shape_of_weights

pytestmark = pytest.mark.usefixtures("one_thread")
V, D, H, P, L = 31, 12, 3, 7, 2
SHAPE = ModelConfig(n_vocab=V, n_embd=D, n_head=H, n_positions=P, n_layer=L)


def saved(path: Path, model: torch.nn.Module) -> Path:
    torch.save(model.state_dict(), path)
    return path


def loaded(path: Path, n_head: int | None = None) -> DecoderLM:
    weights = read_weights(path)
    return model_of_weights(weights, shape_of_weights(weights, path, n_head), path)


@pytest.mark.parametrize(("n_embd", "n_head"), [(12, 3), (12, 12), (12, 1), (72, 9), (72, 8)])
def test_the_courses_weights_give_the_courses_logits(
    tmp_path: Path, n_embd: int, n_head: int
) -> None:
    course = CourseLM(V, n_embd, n_head, P, L)
    path = saved(tmp_path / "model.pt", course)
    model = loaded(path).eval()  # the heads come from scale_factor
    assert model.shape == ModelConfig(
        n_vocab=V, n_embd=n_embd, n_head=n_head, n_positions=P, n_layer=L
    )
    ids = torch.randint(V, (4, P))
    expected = course.double()(ids)
    torch.testing.assert_close(model.double()(ids), expected, rtol=1e-11, atol=1e-11)
    assert expected.std() > 0.5


def test_the_names_are_the_courses_own() -> None:
    ours = {name: t.shape for name, t in DecoderLM.from_config(SHAPE).state_dict().items()}
    theirs = {name: t.shape for name, t in CourseLM(V, D, H, P, L).state_dict().items()}
    assert ours == theirs


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    course = CourseLM(V, D, H, P, L).to(dtype)
    model = loaded(saved(tmp_path / "model.pt", course))
    assert model.shape.n_head == H
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.requires_grad
        assert torch.equal(parameter, course.state_dict()[name].float())


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_orig_mod.module."])
def test_wrappers_leave_their_prefix_behind(tmp_path: Path, prefix: str) -> None:
    course = CourseLM(V, D, H, P, L)
    torch.save({prefix + k: t for k, t in course.state_dict().items()}, tmp_path / "model.pt")
    model = loaded(tmp_path / "model.pt")
    assert torch.equal(model.ln.weight, course.ln.weight)


def without_scale(model: torch.nn.Module) -> dict[str, Tensor]:
    return {k: t for k, t in model.state_dict().items() if not k.endswith("scale_factor")}


def test_without_the_buffer_the_heads_are_asked_for(tmp_path: Path) -> None:
    course = CourseLM(V, D, H, P, L)
    path = tmp_path / "model.pt"
    torch.save(without_scale(course), path)
    with pytest.raises(ConfigError, match=r"give --n-head, a divisor of n_embd = 12"):
        loaded(path)
    ids = torch.randint(V, (2, P))
    model = loaded(path, n_head=H).eval()
    torch.testing.assert_close(model.double()(ids), course.double()(ids), rtol=1e-11, atol=1e-11)
    with pytest.raises(ConfigError, match="n_embd = 12 is not a multiple of n_head = 5"):
        loaded(path, n_head=5)


Change = Callable[[dict[str, Tensor]], object]


def rename(weights: dict[str, Tensor]) -> None:
    weights["blocks.0.mha.out.weight"] = weights.pop("blocks.0.mha.proj.weight")


CHANGES: list[tuple[Change, str]] = [
    (rename, "no blocks.0.mha.proj.weight and 1 more"),
    (lambda w: w.pop("ln.bias"), "does not fit the model (no ln.bias)"),
    (lambda w: w.update(extra=torch.ones(2)), "(unknown extra)"),
    (lambda w: w.update({"ln.bias": torch.ones(D + 1)}), "ln.bias is (13,), expected (12,)"),
    (lambda w: w.update({"ln.bias": torch.ones(D).long()}), "ln.bias holds int64"),
    (lambda w: w.pop("token_embeddings.weight"), "not weights of a decoder of this shape"),
    (lambda w: w.update({"token_embeddings.weight": torch.ones(3)}), "not weights of a decoder"),
    (lambda w: w.update({"blocks.3.ln_1.bias": torch.ones(D)}), "not numbered from 0"),
    (lambda w: w.update({"blocks.1.mha.scale_factor": torch.ones(2)}), "mha.scale_factor"),
    (lambda w: w.update({"ln.bias": torch.ones(D).to_sparse()}), "expected a state dict"),
    (lambda w: w.update({"ln.bias": torch.ones(D, device="meta")}), "expected a state dict"),
    (lambda w: w.update(step=3), "expected a state dict"),
    (lambda w: w.clear(), "found none"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_weights_that_do_not_fit_are_one_clear_line(
    tmp_path: Path, change: Change, message: str
) -> None:
    weights = CourseLM(V, D, H, P, L).state_dict()
    change(weights)
    path = tmp_path / "model.pt"
    torch.save(weights, path)
    with pytest.raises(CheckpointError) as caught:
        loaded(path, n_head=H)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_something_else_than_a_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2, 3], tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="does not fit the model"):
        read_weights(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"garbage"),
        lambda path: path.write_bytes(bytes(range(256)) * 20),
        lambda path: path.write_bytes(b"PK\x03\x04 cut"),
        lambda path: path.write_bytes(b"\xff" * 8 + b"{}"),
        lambda path: path.write_bytes(path.read_bytes()[:-300]),
    ],
)
def test_damaged_files_are_one_clear_line(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    from safetensors.torch import save_file

    path = tmp_path / name
    if path.suffix == ".pt":
        saved(path, CourseLM(V, D, H, P, L))
    else:
        save_file(CourseLM(V, D, H, P, L).state_dict(), path)
    read_weights(path)  # whole, it can be read
    damage(path)
    with pytest.raises(CheckpointError, match="damaged or no") as caught:
        read_weights(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_missing_files_and_folders_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(CheckpointError, match=r"cannot be read \(No such file or directory\)"):
        read_weights(path)
    path.mkdir()
    with pytest.raises(CheckpointError, match=r"cannot be read \(Is a directory\)"):
        read_weights(path)


def test_nothing_is_executed(tmp_path: Path) -> None:
    marker, path = tmp_path / "executed", tmp_path / "model.pt"
    torch.save({"ln.bias": Evil(marker)}, path)
    with pytest.raises(CheckpointError, match="damaged or no weights file"):
        read_weights(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the file is as evil as it is meant to be
    assert marker.exists()
