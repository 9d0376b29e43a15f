"""What a run learns: its model, its batches, their loss and the validation of them.

One class for each architecture; the training loop knows nothing else of it. Batches are pure
functions of (seed, step, micro-batch), so that a resumed run draws what the whole one draws.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, NamedTuple, TypeVar, final

import numpy as np
import torch
from torch import Tensor

from model.decoder import DecoderLM
from model.encoder import CorruptedTokens, EncoderLM, corrupt_tokens
from model.encoder_decoder import EncoderDecoderLM
from model.loss import linear_cross_entropy
from model.sampled_softmax import VocabularySample, sampled_cross_entropy
from trainer.config import RunConfig
from trainer.data.device_tokens import DeviceTokens, tokens_on_device
from trainer.data.pairs import (
    PairBatch,
    PairIndex,
    PairSampler,
    sequential_pairs,
    target_bytes_per_token,
)
from trainer.data.sampler import WindowSampler
from trainer.data.shards.tokens import TokenArray, TokenData
from trainer.data.vocabulary_sample import VocabularySampler
from trainer.evaluation import (
    Model,
    Predictions,
    Validation,
    sequential_windows,
    validate,
    validate_on,
)
from trainer.memory import EVAL_TOKENS

Forward = Callable[..., Tensor]
"""`model.hidden`, compiled or not."""
BatchT = TypeVar("BatchT", bound=tuple[Any, ...])

NOISE_TOKENS = 1 << 20
"""Random ids to measure speed with."""
_CORRUPTION = 1
"""Keeps the draws of the corruption apart from those of the data order."""
_VALIDATION_SEED = 0
"""Every run is validated on the same masked tokens."""


class Objective(ABC, Generic[BatchT]):
    """What the model of a run learns to predict."""

    model_class: type[DecoderLM] | type[EncoderLM] | type[EncoderDecoderLM]
    gathers_on_device: bool = False
    """Whether `gather` can make batches, with nothing from the CPU but `step_inputs`."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.config, self.device = config, device

    def build_model(self) -> Model:
        """A freshly initialised model on the device; draws from torch's global generator."""
        model = self.model_class.from_config(self.config.model)  # type: ignore[arg-type]
        return model.to(self.device)

    @abstractmethod
    def read(self, data: TokenData, *, train: bool = True) -> None:
        """Take the text to draw batches from and to validate on; without `train` the latter only.

        Raises:
            DataError: it is too short, or of another kind.
        """

    @abstractmethod
    def batch(self, step: int, micro: int) -> BatchT:
        """Micro-batch `micro` of optimiser step `step` (both from 0), on the device."""

    def step_inputs(self, first_step: int, count: int) -> list[np.ndarray]:
        """What differs between the batches of so many steps; only where `gathers_on_device`.

        Arrays (count, M, ...), M micro-batches per step, of the same shapes for every step.
        """
        raise NotImplementedError

    def gather(self, inputs: Sequence[Tensor]) -> BatchT:
        """A micro-batch from its part of each array of `step_inputs`; likewise."""
        raise NotImplementedError

    @abstractmethod
    def random_batch(self, n: int) -> BatchT:
        """So many sequences of random ids, of the run's lengths, to measure speed with."""

    @abstractmethod
    def loss(self, forward: Forward, model: Any, batch: BatchT) -> Tensor:
        """Mean loss of the predicted tokens in nats, differentiable; a scalar."""

    @abstractmethod
    def validate(self, model: Any, autocast: AbstractContextManager[Any]) -> Validation:
        """One pass over the validation text."""

    def _random_ids(self, *size: int) -> Tensor:
        return torch.randint(self.config.model.n_vocab, size, device=self.device)

    def _eval_rows(self, length: int) -> int:
        return max(self.config.batch_size, EVAL_TOKENS // length)


def objective_for(config: RunConfig, device: torch.device) -> Objective[Any]:
    """The objective of a configuration's architecture."""
    objectives: dict[str, type[Objective[Any]]] = {
        "decoder": NextToken,
        "encoder": MaskedTokens,
        "encoder-decoder": TargetOfSource,
    }
    return objectives[config.architecture](config, device)


class _Stream(Objective[BatchT]):
    """Learns from windows of running text."""

    data: TokenData

    def read(self, data: TokenData, *, train: bool = True) -> None:
        """See `Objective.read`."""
        self.data = data
        if train:
            self.draw_from(data.train)

    def draw_from(self, tokens: TokenArray) -> None:
        """Draw training windows from these tokens."""
        config, micro_batches = self.config, self.config.grad_accumulation_steps
        self.sampler = WindowSampler(
            tokens, config.batch_size, config.seq_len, config.seed, micro_batches
        )

    def windows(self, step: int, micro: int) -> Tensor:
        """(B, S + 1) ids on the device."""
        windows = torch.from_numpy(self.sampler.batch(step, micro))
        if self.device.type == "cuda":
            windows = windows.pin_memory()
        return windows.to(self.device, non_blocking=True)


class Windows(NamedTuple):
    """A batch of running text."""

    ids: Tensor
    """(B, S + 1) token ids."""
    sample: VocabularySample | None
    """What targets are compared with; None: with all of the vocabulary."""


@final
class NextToken(_Stream[Windows]):
    """The decoder: each token from those before it."""

    model_class = DecoderLM

    _counts: np.ndarray | None = None
    _vocabulary: VocabularySampler | None = None
    _log_inclusion: Tensor | None = None
    _device_tokens: DeviceTokens | None = None

    def read(self, data: TokenData, *, train: bool = True) -> None:
        """See `Objective.read`; counts the training text's ids and keeps them, where needed."""
        super().read(data, train=train)
        config = self.config
        if not train:
            return
        if self.device.type == "cuda":
            self.keep_on_device(data.train)
        if getattr(config.model, "head_bias", None) == "unigram" or config.head_samples is not None:
            self._counts = data.train.counts(config.model.n_vocab)
        if self._counts is not None and config.head_samples is not None:
            self._sample_by(self._counts)

    def _sample_by(self, counts: np.ndarray) -> None:
        assert self.config.head_samples is not None
        self._vocabulary = VocabularySampler(counts, self.config.head_samples, self.config.seed)
        logs = np.log(self._vocabulary.inclusion)
        self._log_inclusion = torch.from_numpy(logs).float().to(self.device)

    def read_noise(self) -> None:
        """Take random ids in place of a text, on the device: to measure speed with."""
        config = self.config
        ids = np.random.default_rng(config.seed).integers(
            min(config.model.n_vocab, 1 << 16), size=max(NOISE_TOKENS, 2 * config.seq_len)
        )
        tokens = TokenArray.from_arrays([ids])
        self.draw_from(tokens)
        if config.head_samples is not None:
            self._sample_by(np.ones(config.model.n_vocab, dtype=np.int64))
        self.keep_on_device(tokens)

    def keep_on_device(self, tokens: TokenArray) -> None:
        """Gather windows on the device from now on, if the text fits there."""
        self._device_tokens = tokens_on_device(tokens, self.device)
        self.gathers_on_device = self._device_tokens is not None

    def step_inputs(self, first_step: int, count: int) -> list[np.ndarray]:
        """Where windows begin, (count, M, B), and the sampled ids, (count, M, K)."""
        config = self.config
        micro_batches = config.grad_accumulation_steps
        size = (count, micro_batches, config.batch_size)
        starts = self.sampler.draw(first_step * config.sequences_per_step, math.prod(size))
        inputs = [starts.reshape(size)]
        if self._vocabulary is not None:
            draws = [
                self._vocabulary.sample(first_step + step, micro)
                for step in range(count)
                for micro in range(micro_batches)
            ]
            inputs.append(np.stack(draws).reshape(count, micro_batches, -1))
        return inputs

    def gather(self, inputs: Sequence[Tensor]) -> Windows:
        """Windows gathered on the device."""
        assert self._device_tokens is not None
        windows = self._device_tokens.windows(inputs[0], self.config.seq_len + 1)
        if self._log_inclusion is None:
            return Windows(windows, None)
        return Windows(windows, VocabularySample(inputs[1], self._log_inclusion))

    def build_model(self) -> DecoderLM:
        """See `Objective.build_model`; the head's bias is that of the text, once it is read."""
        model = super().build_model()
        assert isinstance(model, DecoderLM)
        if model.head_bias is not None and self._counts is not None:
            model.count_unigrams(torch.from_numpy(self._counts))
        return model

    def batch(self, step: int, micro: int) -> Windows:
        """Windows of the training text."""
        return Windows(self.windows(step, micro), self._sample(step, micro))

    def random_batch(self, n: int) -> Windows:
        """Windows of noise."""
        if self.config.head_samples is not None and self._vocabulary is None:
            self._sample_by(np.ones(self.config.model.n_vocab, dtype=np.int64))
        return Windows(self._random_ids(n, self.config.seq_len + 1), self._sample(0, 0))

    def loss(self, forward: Forward, model: Any, batch: Windows) -> Tensor:
        """Cross-entropy of tokens 2 … S + 1, or of telling them from a sample."""
        hidden = forward(batch.ids[:, :-1]).flatten(0, 1)
        targets = batch.ids[:, 1:].flatten()
        if batch.sample is not None:
            return sampled_cross_entropy(
                hidden, model.head_weight, targets, batch.sample, model.head_bias
            )
        return linear_cross_entropy(hidden, model.head_weight, targets, bias=model.head_bias)

    def _sample(self, step: int, micro: int) -> VocabularySample | None:
        if self._vocabulary is None or self._log_inclusion is None:
            return None
        ids = torch.from_numpy(self._vocabulary.sample(step, micro))
        return VocabularySample(ids.to(self.device), self._log_inclusion)

    def validate(self, model: Any, autocast: AbstractContextManager[Any]) -> Validation:
        """Next-token loss, windows walked in order."""
        seq_len = max(2, self.config.seq_len)
        return validate(
            model,
            self.data.val,
            seq_len=seq_len,
            batch_size=self._eval_rows(seq_len),
            device=self.device,
            autocast=autocast,
            bytes_per_token=self.data.bytes_per_token,
        )


@final
class MaskedTokens(_Stream[CorruptedTokens]):
    """The encoder: hidden tokens from all that stand around them.

    Each window has the same number of predicted tokens, as in BERT's own code, so that the charge
    of a step is known beforehand. The end-of-text id is never predicted.
    """

    model_class = EncoderLM

    special_ids: tuple[int, ...] = ()

    def read(self, data: TokenData, *, train: bool = True) -> None:
        """See `Objective.read`."""
        super().read(data, train=train)
        self.special_ids = (data.eot,)

    def batch(self, step: int, micro: int) -> CorruptedTokens:
        """Windows of the training text, corrupted."""
        windows = self.windows(step, micro)[:, : self.config.seq_len]
        return self._corrupt(windows, self.config.seed, _CORRUPTION, step, micro)

    def random_batch(self, n: int) -> CorruptedTokens:
        """Windows of noise, corrupted."""
        return self._corrupt(self._random_ids(n, self.config.seq_len) % self.config.mask_id, 0)

    def loss(self, forward: Forward, model: Any, batch: CorruptedTokens) -> Tensor:
        """Cross-entropy of the chosen tokens."""
        hidden = forward(batch.inputs)[batch.chosen]
        return linear_cross_entropy(hidden, model.head_weight, batch.targets)

    def validate(self, model: Any, autocast: AbstractContextManager[Any]) -> Validation:
        """Masked-token loss, windows walked in order; each is always corrupted alike."""

        def predictions() -> Iterator[Predictions]:
            seq_len, first = self.config.seq_len, 0
            for ids in sequential_windows(self.data.val, seq_len, self._eval_rows(seq_len)):
                rows = [
                    self._corrupt(torch.from_numpy(row[None]), _VALIDATION_SEED, first + number)
                    for number, row in enumerate(ids)
                ]
                first += len(rows)
                inputs = torch.cat([row.inputs for row in rows]).to(self.device)
                chosen = torch.cat([row.chosen for row in rows])
                targets = torch.cat([row.targets for row in rows]).to(self.device)
                hidden = model.hidden(inputs)[chosen.to(self.device)]
                yield Predictions(hidden, targets, chosen.sum(dim=1).tolist())

        nothing = "the validation text has no token to mask: prepare more of it"
        return validate_on(model, predictions(), autocast, nothing)

    def _corrupt(self, ids: Tensor, *seed: int) -> CorruptedTokens:
        draws = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
        return corrupt_tokens(
            ids,
            self.config.model.n_vocab,
            self.config.mask_id,
            self.config.predicted_per_sequence,
            generator=torch.Generator().manual_seed(int(draws >> np.uint64(1))),
            special_ids=self.special_ids,
        )


@final
class TargetOfSource(Objective[PairBatch]):
    """The encoder-decoder: each target token from the source and the target before it."""

    model_class = EncoderDecoderLM

    def read(self, data: TokenData, *, train: bool = True) -> None:
        """Find the pairs; see `Objective.read`."""
        data.require_pairs()
        config = self.config
        assert config.source_len is not None
        if train:
            self.sampler = PairSampler(
                PairIndex(data.train, data.eot),
                config.batch_size,
                config.source_len,
                config.seq_len,
                config.seed,
                config.grad_accumulation_steps,
            )
        self.val = PairIndex(data.val, data.eot)
        self.bytes_per_token = None
        if data.token_bytes is not None:
            self.bytes_per_token = target_bytes_per_token(
                self.val, self.config.seq_len, data.token_bytes
            )

    def batch(self, step: int, micro: int) -> PairBatch:
        """Pairs of the training text."""
        return self.sampler.batch(step, micro, self.device)

    def random_batch(self, n: int) -> PairBatch:
        """Pairs of noise, as long as they may be."""
        assert self.config.source_len is not None
        source = self._random_ids(n, self.config.source_len)
        target = self._random_ids(n, self.config.seq_len + 1)
        return PairBatch(source, target, torch.ones_like(source), torch.ones_like(target))

    def loss(self, forward: Forward, model: Any, batch: PairBatch) -> Tensor:
        """Cross-entropy of the target tokens that are no padding."""
        hidden, targets, _ = self._predict(forward, batch)
        return linear_cross_entropy(hidden, model.head_weight, targets)

    def validate(self, model: Any, autocast: AbstractContextManager[Any]) -> Validation:
        """Teacher-forced loss of the targets, pairs walked in order."""
        config = self.config
        assert config.source_len is not None
        rows = self._eval_rows(config.tokens_per_sequence)
        batches = sequential_pairs(self.val, rows, config.source_len, config.seq_len, self.device)
        predictions = (Predictions(*self._predict(model.hidden, batch)) for batch in batches)
        nothing = "the validation text has no pair: prepare more of it"
        return validate_on(model, predictions, autocast, nothing, self.bytes_per_token)

    @staticmethod
    def _predict(forward: Forward, batch: PairBatch) -> tuple[Tensor, Tensor, list[int]]:
        """Hidden states and ids of the predicted target tokens, and their number in each pair.

        The decoder needs no mask: padding is on the right, where nothing that counts sees it.
        """
        inputs = batch.target_ids[:, :-1]
        counts = batch.target_mask[:, 1:] != 0
        hidden = forward(batch.source_ids, inputs, batch.source_mask)
        targets = batch.target_ids[:, 1:][counts]
        return hidden[counts], targets, counts.sum(dim=1).tolist()
