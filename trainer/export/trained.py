"""Encoders and encoder-decoders that runs have trained: loaded and measured.

Decoders have formats of their own and more uses: see `trainer.export.formats`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from budgetsweep.errors import ConfigError
from model.encoder import EncoderLM
from model.encoder_decoder import EncoderDecoderLM
from trainer.config import RunConfig
from trainer.data.shards.tokens import TokenArray, TokenData
from trainer.data.tokenizers import END_OF_TEXT, load_tokenizer
from trainer.evaluation import Validation
from trainer.export.formats import run_beside, weights_file
from trainer.export.weights import check_names, read_weights
from trainer.hardware.device import autocast_context
from trainer.objectives import objective_for


@dataclass(frozen=True)
class Trained:
    """A model and the run that trained it."""

    model: EncoderLM | EncoderDecoderLM
    """float32, on the device asked for."""
    config: RunConfig
    path: Path
    """The weights file."""


def open_trained(path: Path, device: torch.device) -> Trained:
    """The encoder or encoder-decoder of a run's folder or its model.pt.

    Raises:
        CheckpointError: nothing there, damaged, or weights of another shape.
        ConfigError: config.yaml is not one, or is that of a decoder.
    """
    config = run_beside(path)
    if config is None or config.architecture == "decoder":
        raise ConfigError(f"{path}: expected an encoder or an encoder-decoder with its config.yaml")
    file = weights_file(path)
    weights = read_weights(file)
    model = objective_for(config, torch.device("cpu")).build_model()
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    check_names(weights, expected, set(), file)
    model.load_state_dict(weights)
    assert isinstance(model, EncoderLM | EncoderDecoderLM)
    return Trained(model.to(device), config, file)


def evaluate_trained(trained: Trained, data: TokenData, device: torch.device) -> Validation:
    """The run's own kind of validation on another text: masked tokens, or targets of sources.

    Raises:
        DataError: the text is of another kind or too short.
    """
    objective = objective_for(trained.config, device)
    objective.read(data, train=False)
    return objective.validate(trained.model, autocast_context(trained.config, device))


def held_out_data(trained: Trained, ids: TokenArray, description: str, *, pairs: bool) -> TokenData:
    """Tokens of a file as text to validate on; `pairs`: they are `source eot target eot`."""
    tokenizer = trained.config.tokenizer_encoding
    return TokenData(
        train=TokenArray([]),
        val=ids,
        tokenizer_encoding=tokenizer,
        n_vocab=trained.config.model.n_vocab,
        eot=END_OF_TEXT[tokenizer],
        bytes_per_token=None,
        data_checksum="",
        val_checksum="",
        description=description,
        folder=Path(),
        exhausted=True,
        pairs=pairs,
        token_bytes=load_tokenizer(tokenizer).token_bytes() if pairs else None,
    )
