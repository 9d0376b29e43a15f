"""Weights files to a model: a run's or the course's model.pt, safetensors of the same names.

Whatever comes from a file is checked before a model is built of it: names, shapes, and the number
of heads, which no tensor's shape shows. Nothing is unpickled but tensors.
"""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path

import torch
from torch import Tensor

from budgetsweep.config import parse
from budgetsweep.errors import CheckpointError, ConfigError
from model.config import ModelConfig
from model.decoder import DecoderLM

SCALE = "mha.scale_factor"
"""Buffer of each block, 1/√(n_embd / n_head): the only trace of n_head in the weights."""

_WRAPPERS = ("_orig_mod.", "module.")
"""What torch.compile and DistributedDataParallel put before each name."""
_BLOCK = re.compile(r"blocks\.(\d{1,9})\.")
_TOKENS, _POSITIONS = "token_embeddings.weight", "position_embeddings.weight"
_NORM, _BIAS, _HEAD_BIAS = "ln.weight", "blocks.0.mha.proj.bias", "head_bias"


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a model.pt (a state dict) or of a .safetensors file, on the CPU.

    Raises:
        CheckpointError: the file is missing, damaged, or holds something else.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch thinks of a damaged file, before it gives up
        try:
            weights = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch has a dozen for a file that is not one of its own
            raise CheckpointError(f"{path}: damaged or no weights file") from error
    if not isinstance(weights, dict) or not all(map(_is_plain, weights.values())):
        raise CheckpointError(
            f"{path}: does not fit the model (expected a state dict, tensors by name, as "
            "`torch.save(model.state_dict(), path)` writes it)"
        )
    return {_unwrapped(str(name)): tensor for name, tensor in weights.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb"):  # safetensors' own message names no reason
            pass
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or no safetensors file") from error


def shape_of_weights(
    weights: dict[str, Tensor], where: Path, n_head: int | None = None
) -> ModelConfig:
    """The shape of the model that these weights are of.

    `n_head` None: read from the blocks' `mha.scale_factor`.

    Raises:
        CheckpointError: not weights of a `DecoderLM`, or of one with options (`ModelConfig`), which
            tensors show in part only.
        ConfigError: n_head is wanted but not given, or does not divide n_embd.
    """
    tokens = weights.get(_TOKENS)
    layers = {int(match[1]) for match in map(_BLOCK.match, weights) if match}
    if tokens is None or tokens.ndim != 2 or not layers:
        found = ", ".join(sorted(weights)[:3]) or "none"
        raise CheckpointError(
            f"{where}: not weights of a decoder of this shape (expected the tensors {_TOKENS}, "
            f"{_POSITIONS}, blocks.0.ln_1.weight, …; found {found})"
        )
    if layers != set(range(len(layers))):
        raise CheckpointError(f"{where}: its blocks are not numbered from 0 without a gap")
    signs = [f"no {name}" for name in (_POSITIONS, _NORM, _BIAS) if name not in weights]
    signs += [name for name in weights if name == _HEAD_BIAS]
    if signs:  # neither `qk_norm` nor `activation` shows at all
        raise CheckpointError(
            f"{where}: of a model with options ({signs[0]}), which its tensors do not show in "
            "full: keep the config.yaml of its run beside it"
        )
    n_vocab, width = tokens.shape
    if n_head is None:
        n_head = _heads_of_scale(weights, width)
    if n_head is None:
        raise ConfigError(
            f"{where}: the number of heads cannot be read off the weights: give --n-head, a "
            f"divisor of n_embd = {width}"
        )
    sizes = {"n_vocab": n_vocab, "n_embd": width, "n_head": n_head, "n_layer": len(layers)}
    n_positions = len(weights[_POSITIONS])
    return parse(ModelConfig, {**sizes, "n_positions": n_positions}, str(where))


def model_of_weights(weights: dict[str, Tensor], shape: ModelConfig, where: Path) -> DecoderLM:
    """A float32 model with these weights, on the CPU; the blocks' scale may be left out.

    Raises:
        CheckpointError: a tensor is missing, unexpected, misshapen, no floating-point one, or made
            for another number of heads.
    """
    model = DecoderLM.from_config(shape)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    scales = {name for name in expected if name.endswith(SCALE)}
    check_names(weights, expected, scales, where)
    for name in scales & weights.keys():
        _check_scale(weights[name], shape, where)
    model.load_state_dict({n: weights[n] for n in expected if n not in scales}, strict=False)
    return model


def check_names(
    weights: dict[str, Tensor], expected: dict[str, torch.Size], optional: set[str], where: Path
) -> None:
    """Raise `CheckpointError` where tensors are not those that a model expects."""
    problems = [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(size)}"
        for name, size in expected.items()
        if name in weights and name not in optional and weights[name].shape != size
    ]
    problems += [
        f"{name} holds {tensor.dtype}".replace("torch.", "")
        for name, tensor in weights.items()
        if name in expected and not tensor.is_floating_point()
    ]
    needed = (name for name in expected if name not in optional)
    problems += [f"no {name}" for name in needed if name not in weights]
    problems += [f"unknown {name}" for name in weights if name not in expected]
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise CheckpointError(f"{where}: does not fit the model ({problems[0]}{more})")


def _heads_of_scale(weights: dict[str, Tensor], width: int) -> int | None:
    """Heads from the scale 1/√(width / heads) that every block holds; None: not there."""
    held = [tensor for name, tensor in weights.items() if name.endswith(SCALE)]
    scales = {float(t) for t in held if t.numel() == 1 and t.is_floating_point()}
    if len(scales) != 1:
        return None
    scale = scales.pop()
    fitting = [h for h in range(1, width + 1) if width % h == 0 and _is_scale(scale, width // h)]
    return min(fitting, key=lambda h: abs((width // h) ** -0.5 - scale), default=None)


def _is_scale(value: float, head_dim: int) -> bool:
    return abs(value * head_dim**0.5 - 1.0) < 0.01  # bf16 keeps 2 to 3 digits


def _check_scale(scale: Tensor, shape: ModelConfig, where: Path) -> None:
    number = float(scale) if scale.numel() == 1 and scale.is_floating_point() else math.nan
    if _is_scale(number, shape.head_dim):
        return
    raise CheckpointError(
        f"{where}: its mha.scale_factor is not 1/√{shape.head_dim}, so it was not trained with "
        f"n_head = {shape.n_head}"
    )


def _is_plain(value: object) -> bool:
    return (
        isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    )


def _unwrapped(name: str) -> str:
    for prefix in _WRAPPERS:
        name = name.removeprefix(prefix)
    return name
