"""AdamW with decay on matrices only, against the algorithm written out."""

import math
from typing import Any

import numpy as np
import torch

from model.decoder import DecoderLM
from trainer.config import RunConfig
from trainer.optim import build_optimizer

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
    optimizer = build_optimizer(model, config(), "cpu")
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        is_matrix = name.endswith("weight") and ".ln_" not in name and name != "ln.weight"
        assert decay[id(parameter)] == (0.3 if is_matrix else 0.0), name
    assert len(decay) == len(list(model.parameters()))


def test_settings_reach_every_group() -> None:
    for group in build_optimizer(DecoderLM(**SHAPE), config(), "cpu").param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.01, (0.8, 0.9), 1e-3)


def test_steps_equal_the_algorithm() -> None:
    """Loshchilov & Hutter 2019, algorithm 2: decoupled decay, bias-corrected moments."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 3).double()
    optimizer = build_optimizer(layer, config(), "cpu")
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


def test_frozen_parameters_are_left_out() -> None:
    model = DecoderLM(**SHAPE)
    model.position_embeddings.weight.requires_grad_(False)
    optimizer = build_optimizer(model, config(), torch.device("cpu"))
    optimised = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert id(model.position_embeddings.weight) not in optimised
    assert math.prod(model.position_embeddings.weight.shape) == 16 * 8


def test_a_model_without_vectors_has_one_group() -> None:
    optimizer = build_optimizer(torch.nn.Linear(2, 2, bias=False), config(), "cpu")
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3]
