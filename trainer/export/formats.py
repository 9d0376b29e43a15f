"""A trained model in other files: safetensors, and `transformers`' GPT-2, which is only written.

A converted model is a folder, written beside its final name and renamed: it appears whole or not
at all, and never replaces anything.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field
from torch import Tensor

from budgetsweep.config import StrictModel, dump_yaml, load_yaml, parse
from budgetsweep.errors import CheckpointError, ConfigError
from budgetsweep.files import atomic_folder
from model.config import ModelConfig
from model.decoder import DecoderLM
from trainer.checkpoints.artefacts import FILES, write_model
from trainer.config import TOKENIZER_VOCABULARIES, RunConfig
from trainer.data.tokenizers import END_OF_TEXT
from trainer.export.gpt2 import GPT2_CONFIG, require_gpt2, to_gpt2
from trainer.export.weights import (
    model_of_weights,
    read_weights,
    shape_of_weights,
)

Format = Literal["safetensors", "gpt2", "pt"]

SAFETENSORS = "model.safetensors"


class ModelDescription(StrictModel):
    """A config.yaml that has a model's shape but not how it was trained."""

    tokenizer_encoding: str | None = None
    """A key of `TOKENIZER_VOCABULARIES`; None: not known."""
    model: ModelConfig = Field(alias="model_config")
    """Shape of the model."""


@dataclass(frozen=True)
class LoadedModel:
    """A model from a file or folder, and what stands beside it."""

    model: DecoderLM
    """float32, on the CPU, in training mode."""
    path: Path
    """The weights file."""
    config: RunConfig | None
    """The run that trained it; None where no config.yaml says so."""
    tokenizer: str | None
    """Its tokenizer; None where nothing says so. A vocabulary of 257 or 50257 ids does: `bytes` and
    `gpt2`."""

    @property
    def shape(self) -> ModelConfig:
        """The model's shape."""
        return self.model.shape


def open_model(path: Path, n_head: int | None = None, tokenizer: str | None = None) -> LoadedModel:
    """A model from a file or folder: model.pt, or safetensors with our names.

    A config.yaml beside the weights gives shape and tokenizer; without one the shape is read off
    the tensors. `n_head` is for weights that do not show it, `tokenizer` for a model without one.

    Raises:
        CheckpointError: nothing there, damaged, or of another shape.
        ConfigError: n_head is needed or contradicts, config.yaml is not one, or the tokenizer is
            unknown or another one.
    """
    file = weights_file(path)
    config, described = _read_config(file.with_name(FILES["config"]))
    if config is not None and config.architecture != "decoder":
        raise ConfigError(f"{path}: holds an {config.architecture}, expected a decoder")
    weights = read_weights(file)
    shape = described.model if described else shape_of_weights(weights, file, n_head)
    if n_head not in (None, shape.n_head):
        raise ConfigError(f"--n-head {n_head}: {file} has n_head = {shape.n_head}")
    known = _tokenizer_of(described, shape, tokenizer)
    return LoadedModel(model_of_weights(weights, shape, file), file, config, known)


def convert(loaded: LoadedModel, to: Format, folder: Path) -> list[Path]:
    """Write a model as a new folder, which must not exist or be empty.

    `safetensors`: model.safetensors with our names. `gpt2`: config.json
    and model.safetensors for `transformers.GPT2LMHeadModel.from_pretrained`. `pt`: model.pt. Each
    with a config.yaml; the tied head is stored once.

    Returns:
        The files, sorted by name.

    Raises:
        ConfigError: the folder exists and is not empty, or the format cannot hold the model.
        CheckpointError: it cannot be written.
    """
    if to == "gpt2":
        require_gpt2(loaded.shape, str(loaded.path))
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder}: exists already; give a new or empty folder")
        with atomic_folder(folder) as temporary:
            _write_files(temporary, loaded, to)
            names = sorted(path.name for path in temporary.iterdir())
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error.strerror or error})") from error
    return [folder / name for name in names]


def _write_files(folder: Path, loaded: LoadedModel, to: Format) -> None:
    weights, shape = loaded.model.state_dict(), loaded.shape
    if loaded.config is not None:
        config = loaded.config.to_dict()
    else:
        config = {"model_config": {**shape.sizes(), **shape.options()}}
        if loaded.tokenizer is not None:
            config = {"tokenizer_encoding": loaded.tokenizer, **config}
    (folder / FILES["config"]).write_text(dump_yaml(config), encoding="utf-8")
    if to == "pt":
        write_model(folder / FILES["model"], weights)
    elif to == "gpt2":
        eot = END_OF_TEXT[loaded.tokenizer] if loaded.tokenizer else None
        gpt2, tensors = to_gpt2(weights, shape, eot)
        (folder / GPT2_CONFIG).write_text(json.dumps(gpt2, indent=2) + "\n", encoding="utf-8")
        _write_safetensors(folder / SAFETENSORS, tensors)
    else:
        _write_safetensors(folder / SAFETENSORS, weights)


def _write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save

    # `format` is what `transformers` looks for. Bytes first: a full disk is then an OSError.
    path.write_bytes(save(tensors, metadata={"format": "pt"}))


def run_beside(path: Path) -> RunConfig | None:
    """The run that trained a model, from the config.yaml beside it; None where there is none.

    Errors as in `open_model`.
    """
    return _read_config(weights_file(path).with_name(FILES["config"]))[0]


def weights_file(path: Path) -> Path:
    """The weights that a folder holds, or the file itself; `CheckpointError` without any."""
    if path.is_dir():
        for name in (FILES["model"], SAFETENSORS):
            if (path / name).is_file():
                return path / name
        raise CheckpointError(
            f"{path}: no {FILES['model']} and no {SAFETENSORS} in this folder; expected a run's "
            "folder, as `train` and `promote` write it, or a converted model"
        )
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder; expected a model.pt or its folder")
    return path


def _read_config(path: Path) -> tuple[RunConfig | None, ModelDescription | None]:
    """What a config.yaml says: the run and the model; None: there is none."""
    if not path.is_file():
        return None, None
    data = load_yaml(path)
    if data.keys() <= {"tokenizer_encoding", "model_config"}:
        return None, parse(ModelDescription, data, str(path))
    run = parse(RunConfig, data, str(path))
    if run.architecture != "decoder":
        return run, None
    described = {"tokenizer_encoding": run.tokenizer_encoding, "model": run.model}
    return run, ModelDescription.model_validate(described)


def _tokenizer_of(
    described: ModelDescription | None, shape: ModelConfig, wanted: str | None
) -> str | None:
    own = described.tokenizer_encoding if described else None
    for name in (own, wanted):
        if name is not None and name not in TOKENIZER_VOCABULARIES:
            known = ", ".join(TOKENIZER_VOCABULARIES)
            raise ConfigError(f"tokenizer {name!r}: expected one of {known}")
    if own and wanted and own != wanted:
        raise ConfigError(f"--tokenizer {wanted}: the model was trained with {own}")
    by_size = {257: "bytes", 50257: "gpt2"}
    name = own or wanted or by_size.get(shape.n_vocab)
    if name is not None and TOKENIZER_VOCABULARIES[name] > shape.n_vocab:
        raise ConfigError(
            f"tokenizer {name} has {TOKENIZER_VOCABULARIES[name]} ids, but the model only "
            f"{shape.n_vocab} (n_vocab)"
        )
    return name
