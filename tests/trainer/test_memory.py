"""The estimate of peak memory: its count against what autograd really keeps."""

from pathlib import Path
from typing import Any

import pytest
import torch

from model.decoder import DecoderLM
from tests.support.tiny_runs import drive, tiny_config, tiny_data
from trainer.events import DeviceKind
from trainer.hardware import process_memory
from trainer.hardware.device import autocast_context
from trainer.memory import estimate_memory_bytes, saved_blocks


def kept_by_autograd(config: Any) -> int:
    """Bytes of distinct storages, parameters excepted, that the forward pass saves."""
    model = DecoderLM.from_config(config.model)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(config.model.n_vocab, (config.batch_size, config.seq_len + 1))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with autocast_context(config, torch.device("cpu")):
            hidden = model.hidden(ids[:, :-1])
        assert hidden.requires_grad
        return sum(storages.values())


@pytest.mark.parametrize("autocast", ["off", "bf16"])
@pytest.mark.parametrize("p_dropout", [0.0, 0.1])
@pytest.mark.parametrize(
    ("n_embd", "n_head", "n_layer", "seq_len"), [(32, 4, 1, 64), (128, 2, 3, 32), (256, 2, 2, 64)]
)
def test_what_is_saved_for_the_backward_pass_is_counted(
    autocast: str, p_dropout: float, n_embd: int, n_head: int, n_layer: int, seq_len: int
) -> None:
    shape = {"n_embd": n_embd, "n_head": n_head, "n_layer": n_layer, "n_positions": seq_len}
    config = tiny_config(
        shape={**shape, "p_dropout": p_dropout}, autocast=autocast, seq_len=seq_len, batch_size=4
    )
    counted = sum(count * size for count, size in saved_blocks(config, "cpu", autocast == "bf16"))
    assert counted == pytest.approx(kept_by_autograd(config), rel=0.02)


@pytest.mark.parametrize("n_head", [1, 2, 4, 16])
def test_what_a_modern_run_saves_is_counted(n_head: int) -> None:
    config = tiny_config(
        recipe="modern", head_samples=64, autocast="bf16", seq_len=64, batch_size=4,
        shape={"n_embd": 128, "n_head": n_head, "n_layer": 2, "n_positions": 64, "p_dropout": 0.0},
    )  # fmt: skip
    counted = sum(count * size for count, size in saved_blocks(config, "cpu", bf16=True))
    assert counted == pytest.approx(kept_by_autograd(config), rel=0.02)


def test_a_graph_keeps_its_steps_memory_beside_the_validations() -> None:
    config = tiny_config(batch_size=64)
    queued = config.with_changes(cuda_graph="off")
    graph, without = (estimate_memory_bytes(each, "cuda", bf16=True) for each in (config, queued))
    assert without < graph < 2 * without
    assert estimate_memory_bytes(config, "cpu", bf16=True) == estimate_memory_bytes(
        queued, "cpu", bf16=True
    )


def test_every_size_costs_memory() -> None:
    def estimate(kind: DeviceKind = "cuda", bf16: bool = False, **changes: Any) -> int:
        base: dict[str, Any] = {
            "shape": {"n_embd": 128, "n_head": 4, "n_layer": 4, "n_positions": 512},
            "batch_size": 32,
            "seq_len": 256,
            "grad_accumulation_steps": 1,
        }
        base["shape"] |= changes.pop("shape", {})
        return estimate_memory_bytes(tiny_config(**{**base, **changes}), kind, bf16)

    whole = estimate()
    for bigger in (
        {"shape": {"n_embd": 256}},
        {"shape": {"n_layer": 5}},
        {"shape": {"n_vocab": 50257}},
        {"batch_size": 64},
        {"seq_len": 512},
        {"grad_accumulation_steps": 2},
    ):
        assert estimate(**bigger) > whole, bigger
    assert estimate(grad_accumulation_steps=2) == estimate(grad_accumulation_steps=9)
    assert estimate(bf16=True) < whole
    assert estimate("cpu") > whole + 300_000_000


def test_the_peak_is_that_of_the_run_and_not_of_the_process(tmp_path: Path) -> None:
    ballast = torch.ones(100_000_000)
    del ballast
    process_memory.release_freed_memory()
    process_memory.reset_peak_rss()
    now = process_memory.peak_resident_bytes()
    assert now is not None
    result, _ = drive(tiny_config(), tiny_data(), tmp_path)
    assert result.peak_memory_bytes is not None
    assert now - 50_000_000 < result.peak_memory_bytes < now + 100_000_000
