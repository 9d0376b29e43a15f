"""AdamW with decay on matrices only, and Muon, against the algorithms written out."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from model.config import ModelConfig
from model.decoder import DecoderLM
from tests.support.comparing import ALL_OPTIONS
from trainer.config import RunConfig
from trainer.optim import build_optimizer, optimizer_kinds
from trainer.optim.joined import JoinedOptimizers

CPU = torch.device("cpu")
SHAPE = {"n_vocab": 257, "n_embd": 8, "n_head": 2, "n_positions": 16, "n_layer": 2}


def config(**changes: Any) -> RunConfig:
    settings = {
        "model_config": SHAPE,
        "tokenizer_encoding": "bytes",
        "batch_size": 2,
        "seq_len": 16,
        "max_lr": 0.01,
        "weight_decay": 0.3,
        "beta1": 0.8,
        "beta2": 0.9,
        "adam_eps": 1e-3,
    }
    return RunConfig.model_validate({**settings, **changes})


def test_matrices_are_decayed_and_nothing_else() -> None:
    model = DecoderLM(**SHAPE)
    optimizer = build_optimizer(model, config(), CPU)
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        is_matrix = name.endswith("weight") and ".ln_" not in name and name != "ln.weight"
        assert decay[id(parameter)] == (0.3 if is_matrix else 0.0), name
    assert len(decay) == len(list(model.parameters()))


def test_steps_equal_the_algorithm() -> None:
    """Loshchilov & Hutter 2019, algorithm 2: decoupled decay, bias-corrected moments."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 3).double()
    optimizer = build_optimizer(layer, config(), CPU)
    ours = {name: p.detach().numpy().copy() for name, p in layer.named_parameters()}
    m = {name: np.zeros_like(p) for name, p in ours.items()}
    v = {name: np.zeros_like(p) for name, p in ours.items()}
    for t in range(1, 6):
        lr = 0.01 * t
        for group in optimizer.param_groups:
            group["lr"] = lr
        for name, parameter in layer.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            g = parameter.grad.numpy()
            m[name] = 0.8 * m[name] + 0.2 * g
            v[name] = 0.9 * v[name] + 0.1 * g**2
            update = (m[name] / (1 - 0.8**t)) / (np.sqrt(v[name] / (1 - 0.9**t)) + 1e-3)
            decay = 0.3 if name == "weight" else 0.0
            ours[name] = ours[name] - lr * decay * ours[name] - lr * update
        optimizer.step()
        for name, parameter in layer.named_parameters():
            np.testing.assert_allclose(parameter.detach().numpy(), ours[name], rtol=1e-10)


def test_a_model_without_vectors_has_one_group() -> None:
    optimizer = build_optimizer(torch.nn.Linear(2, 2, bias=False), config(), CPU)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3]


def muon_of(model: torch.nn.Module) -> tuple[JoinedOptimizers, dict[str, set[int]]]:
    """The optimiser, and the parameters that each of its members moves."""
    optimizer = build_optimizer(model, config(optimizer="muon"), CPU)
    assert isinstance(optimizer, JoinedOptimizers)
    moved = {
        type(member).__name__: {id(p) for group in member.param_groups for p in group["params"]}
        for member in optimizer.members
    }
    return optimizer, moved


@pytest.mark.parametrize("options", [{}, ALL_OPTIONS], ids=["gpt2", "options"])
def test_muon_moves_the_matrices_of_the_blocks_and_adamw_all_else(options: dict[str, Any]) -> None:
    model = DecoderLM(**SHAPE, **options)
    optimizer, moved = muon_of(model)
    in_blocks = {id(p) for p in model.blocks.parameters() if p.ndim == 2}
    assert len(in_blocks) == 2 * 6
    assert moved["Muon"] == in_blocks
    assert moved["AdamW"] == {id(p) for p in model.parameters()} - in_blocks
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for name, p in model.named_parameters():
        assert decay[id(p)] == (0.3 if p.ndim == 2 else 0.0), name
    assert {group["lr"] for group in optimizer.param_groups} == {0.01}


def test_muon_without_a_block_is_adamw() -> None:
    optimizer = build_optimizer(torch.nn.Linear(3, 2), config(optimizer="muon"), CPU)
    assert isinstance(optimizer, torch.optim.AdamW)


def orthogonalised(update: np.ndarray) -> np.ndarray:
    """Jordan et al. 2024: five steps of X <- aX + (bA + cA²)X with A = XXᵀ, in float64."""
    x = update / np.linalg.norm(update)
    turned = x.shape[0] > x.shape[1]
    x = x.T if turned else x
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if turned else x


@pytest.mark.parametrize("size", [(12, 12), (12, 48), (48, 12)])
def test_muon_steps_equal_the_algorithm(size: tuple[int, int]) -> None:
    """Nesterov momentum, orthogonalised, scaled by 0.2 √max(A, B); decoupled decay.

    torch iterates in bf16: each of the five steps multiplies its rounding (2^-9) by up to 3.4.
    """
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.Linear(*size[::-1])])})
    matrix = model["blocks"][0].weight
    optimizer, _ = muon_of(model)
    momentum = np.zeros(size)
    for t in range(1, 5):
        lr = 0.01 * t
        for group in optimizer.param_groups:
            group["lr"] = lr
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        before, g = matrix.detach().double().numpy().copy(), matrix.grad.double().numpy()
        optimizer.step()
        momentum = 0.95 * momentum + 0.05 * g
        direction = orthogonalised(0.05 * g + 0.95 * momentum)
        step = before * (1 - lr * 0.3) - matrix.detach().double().numpy()
        expected = lr * 0.2 * math.sqrt(max(size)) * direction
        assert np.linalg.norm(step - expected) < 0.05 * np.linalg.norm(expected)
        # The update of a square matrix has about the root mean square of AdamW's (Liu et al. 2025).
        rms = np.sqrt(np.mean(step**2)) / lr
        assert 0.1 < rms < 0.3
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_the_state_of_muon_survives_saving(tmp_path: Path) -> None:
    def step(model: DecoderLM, optimizer: JoinedOptimizers, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()

    torch.manual_seed(0)
    ours = DecoderLM(**SHAPE)
    optimizer, _ = muon_of(ours)
    step(ours, optimizer, 1)
    torch.save({"model": ours.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "s")
    saved = torch.load(tmp_path / "s", weights_only=True)
    theirs = DecoderLM(**SHAPE)
    theirs.load_state_dict(saved["model"])
    resumed, _ = muon_of(theirs)
    resumed.load_state_dict(saved["optimizer"])
    fresh_model = DecoderLM(**SHAPE)
    fresh_model.load_state_dict(saved["model"])
    fresh, _ = muon_of(fresh_model)
    for model, each in ((ours, optimizer), (theirs, resumed), (fresh_model, fresh)):
        step(model, each, 2)
    for a, b, c in zip(
        ours.parameters(), theirs.parameters(), fresh_model.parameters(), strict=True
    ):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)  # without its state each parameter goes elsewhere


@given(d=st.integers(1, 6), layers=st.integers(1, 3))
def test_muons_products_equal_flop_counter(d: int, layers: int) -> None:
    shape = ModelConfig(n_vocab=9, n_embd=4 * d, n_head=2, n_positions=4, n_layer=layers)
    model = DecoderLM.from_config(shape)
    optimizer, _ = muon_of(model)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    muon = optimizer_kinds()["muon"]
    assert counter.get_total_flops() == muon.flops_per_step(shape, "matmul")
    assert counter.get_total_flops() == 2 * muon.flops_per_step(shape, "mac")


@pytest.mark.parametrize("name", optimizer_kinds())
@pytest.mark.parametrize("options", [{}, ALL_OPTIONS], ids=["gpt2", "options"])
def test_what_an_optimizer_remembers_is_counted(name: str, options: dict[str, Any]) -> None:
    model = DecoderLM(**SHAPE, **options)
    optimizer = build_optimizer(model, config(optimizer=name), CPU)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    values = [value for state in optimizer.state.values() for value in state.values()]
    held = sum(value.nbytes for value in values if torch.is_tensor(value) and value.ndim)
    assert held == optimizer_kinds()[name].state_bytes(model.shape)


def test_an_unknown_optimizer_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="expected one of adamw, muon"):
        config(optimizer="sgd")
