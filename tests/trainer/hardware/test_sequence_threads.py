"""A batch's sequences on several threads: the same hidden states and gradients."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.cpu import threads
from model.decoder import DecoderLM
from trainer.hardware import sequence_threads
from trainer.hardware.sequence_threads import hidden_by_rows

MODERN = {"positions": "rope", "norm": "rms", "bias": False, "qk_norm": True}


@pytest.fixture(autouse=True)
def _threads_for_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence_threads, "LEAST_ELEMENTS", 0)
    monkeypatch.setattr(sequence_threads, "team_size", lambda _: 2)


def model_of(p_dropout: float = 0.0, **options: Any) -> DecoderLM:
    torch.manual_seed(3)
    return DecoderLM(23, 16, 2, 12, 2, p_dropout, **options).double()


def gradients(model: DecoderLM, out: Tensor) -> tuple[Tensor, ...]:
    torch.manual_seed(4)
    return torch.autograd.grad((out * torch.randn_like(out)).sum(), list(model.parameters()))


@settings(max_examples=15)
@given(
    rows=st.integers(1, 7),
    length=st.integers(1, 12),
    threads=st.integers(1, 4),
    modern=st.booleans(),
)
def test_equals_the_model_in_float64(rows: int, length: int, threads: int, modern: bool) -> None:
    model = model_of(**(MODERN if modern else {}))
    ids = torch.randint(23, (rows, length))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence_threads, "team_size", lambda _: threads)
        ours = hidden_by_rows(model)(ids)
    theirs = model.hidden(ids)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for a, b in zip(gradients(model, ours), gradients(model, theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_threads_are_used_and_every_time_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = model_of().float(), torch.randint(23, (5, 12))
    calls = []
    whole = threads.run_on_threads

    def counted(function: Any, members: Any, *args: Any) -> Any:
        calls.append(len(members))
        return whole(function, members, *args)

    monkeypatch.setattr(sequence_threads, "run_on_threads", counted)
    results = []
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            out = hidden_by_rows(model)(ids)
        results.append((out, *gradients(model, out)))
    assert calls == [2] * 6  # forward and backward
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("why", ["dropout", "one thread", "no gradients", "little to do"])
def test_when_the_model_is_called_as_it_is(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(p_dropout=0.5 if why == "dropout" else 0.0)
    ids = torch.randint(23, (4, 12))
    monkeypatch.setattr(sequence_threads, "run_on_threads", None)
    if why == "one thread":
        monkeypatch.setattr(sequence_threads, "team_size", lambda _: 1)
    if why == "little to do":
        monkeypatch.setattr(sequence_threads, "LEAST_ELEMENTS", 4 * 12 * 16 + 1)
    with torch.set_grad_enabled(why != "no gradients"):
        torch.manual_seed(5)
        ours = hidden_by_rows(model)(ids)
        torch.manual_seed(5)
        assert torch.equal(ours, model.hidden(ids))
