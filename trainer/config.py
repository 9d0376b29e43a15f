"""Settings of one training run: data, optimiser, schedule, budget. No torch.

The course's YAML is a valid run configuration as it is. Keys that it lacks have the defaults
below. `RunConfig.to_dict()` is what is saved with a run and can be run again unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from budgetsweep.config import StrictModel, shape_error
from budgetsweep.errors import ConfigError
from model.config import EncoderDecoderConfig, ModelConfig
from model.flops import (
    Convention,
    count_active_params,
    count_params,
    flops_per_masked_sequence_by_part,
    flops_per_pair_by_part,
    flops_per_token_by_part,
    params_by_group,
)
from trainer.data.config import Count, DataConfig
from trainer.identity import CountsAs, Identity, Ignored
from trainer.optim import OptimizerKind, optimizer_kinds
from trainer.optim.schedules import cosine_lr_schedule, trapezoid_lr_schedule
from trainer.recipes import RECIPES, RUN_OPTIONS, Recipe, expanded

TOKENIZER_VOCABULARIES = {"gpt2": 50257, "r50k_base": 50257, "p50k_base": 50281, "bytes": 257}
"""Tokenizers whose ids fit in the two bytes of a token file, with their number of ids.

`bytes` is the identity on UTF-8 bytes plus an end-of-text id (256); the others are tiktoken's.
"""

Architecture = Literal["decoder", "encoder", "encoder-decoder"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)

PREDICTED: dict[Architecture, str] = {
    "decoder": "token",
    "encoder": "masked token",
    "encoder-decoder": "target token",
}
"""What a loss is the mean of."""

MASKED_FRACTION = 0.15
"""Share of the tokens that masked-token training predicts (Devlin et al. 2019, 3.1)."""

COOLDOWN_FRACTION = 0.5
"""Of a warmup-stable-decay schedule (Hägele et al. 2024 find little between 0.2 and 0.6)."""

MAX_FLOPS = 10**30

Rate = Annotated[float, Field(ge=0.0, le=1e3)]

HOW_IT_RUNS = Ignored(Identity.RESULT, Identity.CHECKPOINT)
"""Mark of a field that says how a run is carried out, not what it trains."""


_PAIR_KEYS = frozenset(EncoderDecoderConfig.model_fields) - ModelConfig.model_fields.keys()
_OTHER_KEYS = frozenset(ModelConfig.model_fields) - EncoderDecoderConfig.model_fields.keys()


def _shape_tag(shape: Any) -> str:
    """Which of the two classes a shape is to be read as; see `budgetsweep.config.parse`."""
    keys = shape.keys() if isinstance(shape, dict) else ()
    pair = isinstance(shape, EncoderDecoderConfig) or not _PAIR_KEYS.isdisjoint(keys)
    return "<encoder-decoder>" if pair else "<decoder>"


Shape = Annotated[
    Annotated[ModelConfig, Tag("<decoder>")]
    | Annotated[EncoderDecoderConfig, Tag("<encoder-decoder>")],
    Discriminator(_shape_tag),
]


class RunConfig(StrictModel):
    """Everything that decides a training run; `trainer.identity` explains the marks."""

    architecture: Architecture = "decoder"
    """`decoder` learns to predict the next token, `encoder` masked tokens, `encoder-decoder` a
    target from its source."""

    recipe: Recipe = "gpt2"
    """What the options below and those of model_config are where they are not given: `gpt2` the
    course's, `modern` what gives the least loss for the FLOPs (docs/experiments.md)."""
    output_dir: Annotated[str, HOW_IT_RUNS] = "outputs/run"
    """Folder for model.pt, config.yaml, eval.json and checkpoints."""
    tokenizer_encoding: str = "gpt2"
    """A key of `TOKENIZER_VOCABULARIES`."""
    model: Shape = Field(alias="model_config")
    """Shape of the model; n_vocab may be left out and follows from the tokenizer (an encoder has
    one id more, for the mask)."""
    data: DataConfig = DataConfig()
    """Training and validation data."""
    device: Annotated[str, HOW_IT_RUNS, Ignored(Identity.STUDY)] = Field(
        default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$"
    )
    """auto: CUDA, then MPS, then the CPU."""
    batch_size: Count
    """Sequences in a micro-batch (B)."""
    seq_len: Count
    """Tokens in a training sequence (S), at most n_positions; of an encoder-decoder in a target."""
    source_len: Count | None = None
    """Tokens in a source, padding included; encoder-decoder only."""
    masked_fraction: float | None = Field(default=None, gt=0.0, le=1.0)
    """Share of a sequence's tokens to predict; encoder only; None: `MASKED_FRACTION`."""
    head_samples: Count | None = None
    """Vocabulary entries of the sampled softmax (K; `model.sampled_softmax`); None: full softmax.
    Decoder only; evaluation always takes the full softmax."""
    grad_accumulation_steps: Count = 1
    """Micro-batches in one optimiser step."""
    num_training_steps: Count | Literal["fill"] = "fill"
    """Optimiser steps; `fill`: the most that the budget affords."""
    num_warmup_steps: Annotated[
        Annotated[int, Field(ge=0, strict=True)] | None, CountsAs("warmup_steps")
    ] = None
    """Steps of linear warm-up from 0 to max_lr; None: from warmup_fraction."""
    warmup_fraction: Annotated[float | None, CountsAs("warmup_steps")] = Field(
        default=None, ge=0.0, le=1.0
    )
    """Warm-up as a share of the steps, instead of num_warmup_steps."""
    schedule: Literal["cosine", "linear", "wsd"] = "cosine"
    """From max_lr to min_lr after the warm-up: half a cosine, a line, or constant and then a line
    (warmup-stable-decay)."""
    cooldown_fraction: float | None = Field(default=None, gt=0.0, le=1.0)
    """Share of the steps of the final line; wsd only; None: `COOLDOWN_FRACTION`."""
    optimizer: str = "adamw"
    """A name of `trainer.optim.optimizer_kinds`."""
    max_lr: Rate
    """Peak learning rate."""
    min_lr: Annotated[Rate | None, CountsAs("final_lr")] = None
    """Learning rate at the end of the cosine; None: from min_lr_ratio."""
    min_lr_ratio: Annotated[float | None, CountsAs("final_lr")] = Field(
        default=None, ge=0.0, le=1.0
    )
    """min_lr as a share of max_lr, instead of min_lr."""
    weight_decay: Rate = 0.1
    """Decoupled decay, on matrices only."""
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    beta2: float = Field(default=0.95, ge=0.0, lt=1.0)
    adam_eps: float = Field(default=1e-8, gt=0.0)
    grad_clip: float | None = Field(default=1.0, gt=0.0)
    """Largest gradient norm; None: no clipping."""
    seed: Annotated[int, Field(ge=0, lt=2**32, strict=True), Ignored(Identity.RESULT)] = 0
    """Seed of initialisation, data order and dropout."""
    autocast: Literal["auto", "bf16", "off"] = "auto"
    """bf16 autocast; auto: where the device computes bf16 natively."""
    compile: Annotated[Literal["auto", "on", "off"], Ignored(Identity.RESULT)] = "auto"
    """torch.compile; auto: where the run is long enough to pay it back."""
    cuda_graph: Annotated[Literal["auto", "off"], HOW_IT_RUNS] = "auto"
    """A training step captured as one graph on CUDA (`trainer.optimizer_steps`); auto: where it
    can be."""
    budget_flops: Annotated[
        Annotated[int, Field(ge=1, le=MAX_FLOPS)] | None, CountsAs("num_training_steps")
    ] = None
    """Training FLOPs that this run may spend; needed by `num_training_steps: fill`."""
    convention: Annotated[Convention, CountsAs("num_training_steps")] = Convention.NANOGPT
    """How training FLOPs are counted against the budget."""
    num_evals: Annotated[int, Field(ge=1, le=10_000, strict=True)] = 5
    """Validation passes, at equal fractions of the run; the last one at its end."""
    num_reports: Annotated[int, Field(ge=1, le=100_000, strict=True), Ignored(Identity.RESULT)] = (
        100
    )
    """Points of the training curve, at equal fractions of the run."""
    checkpoint_seconds: Annotated[float, HOW_IT_RUNS] = Field(default=60.0, ge=0.0)
    """Seconds between checkpoints; 0: after every step."""

    @field_validator("budget_flops", mode="before")
    @classmethod
    def _whole_flops(cls, value: Any) -> Any:
        if isinstance(value, float) and 1.0 <= value <= MAX_FLOPS:
            return int(value)
        return value

    @field_validator("tokenizer_encoding")
    @classmethod
    def _known_tokenizer(cls, value: str) -> str:
        if value not in TOKENIZER_VOCABULARIES:
            raise ValueError(f"expected one of {', '.join(TOKENIZER_VOCABULARIES)}")
        return value

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, value: str) -> str:
        if value not in optimizer_kinds():
            raise ValueError(f"expected one of {', '.join(optimizer_kinds())}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        """Fill in what follows from the recipe, and n_vocab where the model's shape lacks it."""
        if not isinstance(data, dict):
            return data
        key = "model_config" if "model_config" in data else "model"
        shape = data.get(key)
        if not isinstance(shape, dict):
            return data
        architecture = data.get("architecture", "decoder")
        pair = architecture == "encoder-decoder"
        other = shape.keys() & (_OTHER_KEYS if pair else _PAIR_KEYS)
        if other or (pair and shape.keys().isdisjoint(_PAIR_KEYS)):
            raise ValueError(
                f"the {architecture} has the sizes {', '.join(sorted(_PAIR_KEYS))} in model_config"
                if pair
                else f"{', '.join(sorted(other))} in model_config: only an encoder-decoder has "
                "these; set architecture: encoder-decoder or give n_layer and n_positions"
            )
        encoding = data.get("tokenizer_encoding", "gpt2")
        if "n_vocab" not in shape and isinstance(encoding, str):
            n_ids = TOKENIZER_VOCABULARIES.get(encoding)
            if n_ids is not None:
                shape = {**shape, "n_vocab": n_ids + (architecture == "encoder")}
        recipe, n_vocab = data.get("recipe", "gpt2"), shape.get("n_vocab")
        if recipe in RECIPES and architecture == "decoder" and isinstance(n_vocab, int):
            return expanded(recipe, data, shape, n_vocab)
        return {**data, key: shape}

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        self._check_lengths()
        self._check_options()
        smallest = TOKENIZER_VOCABULARIES[self.tokenizer_encoding]
        masks = self.architecture == "encoder"
        if self.model.n_vocab < smallest + masks:
            raise ValueError(
                f"n_vocab = {self.model.n_vocab} is smaller than the {smallest + masks} ids of "
                f"tokenizer {self.tokenizer_encoding}{' and the mask' if masks else ''}"
            )
        if self.num_warmup_steps is not None and self.warmup_fraction is not None:
            raise ValueError("give num_warmup_steps or warmup_fraction, not both")
        if self.min_lr is not None and self.min_lr_ratio is not None:
            raise ValueError("give min_lr or min_lr_ratio, not both")
        if self.min_lr is not None and self.min_lr > self.max_lr:
            raise ValueError(f"min_lr = {self.min_lr} is above max_lr = {self.max_lr}")
        return self

    def _check_lengths(self) -> None:
        """Sequences fit the positions, and settings of other architectures are not given."""
        if isinstance(self.model, EncoderDecoderConfig):
            if self.source_len is None:
                raise ValueError("an encoder-decoder needs source_len, the tokens of a source")
            lengths = [
                ("seq_len", self.seq_len, "n_target_positions", self.model.n_target_positions),
                ("source_len", self.source_len, "n_source_positions",
                 self.model.n_source_positions),
            ]  # fmt: skip
        else:
            if self.source_len is not None:
                raise ValueError("source_len: only an encoder-decoder has sources")
            lengths = [("seq_len", self.seq_len, "n_positions", self.model.n_positions)]
        if self.masked_fraction is not None and self.architecture != "encoder":
            raise ValueError("masked_fraction: only an encoder learns from masked tokens")
        for name, length, limit, positions in lengths:
            if length > positions:
                raise shape_error(f"{name} = {length} is longer than {limit} = {positions}")

    def _check_options(self) -> None:
        """What only a decoder has is not asked of others, and what excludes itself is not given."""
        if self.architecture != "decoder":
            options = self.model.options() if isinstance(self.model, ModelConfig) else {}
            given = [*options, *(["head_samples"] if self.head_samples is not None else [])]
            if self.optimizer_kind.decoder_only:
                given.insert(0, f"optimizer: {self.optimizer}")
            if self.recipe != "gpt2":
                given.insert(0, f"recipe: {self.recipe}")
            if given:
                raise ValueError(f"{given[0]}: only a decoder can have it")
        if self.head_samples is not None and self.head_samples >= self.model.n_vocab:
            raise ValueError(
                f"head_samples = {self.head_samples} is not less than the {self.model.n_vocab} "
                "entries of the vocabulary: give fewer, or head_samples: null for the full softmax"
            )
        if self.cooldown_fraction is not None and self.schedule != "wsd":
            raise ValueError("cooldown_fraction: only schedule: wsd has a cooldown")

    @property
    def optimizer_kind(self) -> OptimizerKind:
        """How the optimiser is built and what it costs."""
        return optimizer_kinds()[self.optimizer]

    @property
    def sequences_per_step(self) -> int:
        """Training sequences (or pairs) in one optimiser step."""
        return self.batch_size * self.grad_accumulation_steps

    @property
    def tokens_per_sequence(self) -> int:
        """Tokens of a sequence, or of a pair's source and target, padding included."""
        return self.seq_len + (self.source_len or 0)

    @property
    def tokens_per_step(self) -> int:
        """Training tokens in one optimiser step, padding included."""
        return self.sequences_per_step * self.tokens_per_sequence

    @property
    def wanted_train_tokens(self) -> int | None:
        """Training tokens of one pass; None: all there are (those of pairs are not known)."""
        if self.data.train_tokens is not None:
            return self.data.train_tokens
        return None if self.architecture == "encoder-decoder" else self.total_tokens

    @property
    def predicted_per_sequence(self) -> int:
        """Tokens of a sequence whose logits training computes (the most, where it varies)."""
        if self.architecture != "encoder":
            return self.seq_len
        return max(1, round((self.masked_fraction or MASKED_FRACTION) * self.seq_len))

    @property
    def logits_per_token(self) -> int | None:
        """Logits that training computes for a token: the samples' and the target's; None: all."""
        return None if self.head_samples is None else self.head_samples + 1

    @property
    def mask_id(self) -> int:
        """The id that hides a token from an encoder: the first that the tokenizer leaves free."""
        return TOKENIZER_VOCABULARIES[self.tokenizer_encoding]

    @property
    def n_params(self) -> int:
        """Parameters of the model."""
        return count_params(self.model)

    @property
    def n_active_params(self) -> int:
        """Parameters that a training step multiplies a token by (`count_active_params`)."""
        return count_active_params(self.model, self.logits_per_token)

    @property
    def n_block_params(self) -> int:
        """Parameters without token and position embeddings, as authors count who leave them out."""
        groups = params_by_group(self.model)
        return self.n_params - groups["token_embedding"] - groups["position_embedding"]

    def flops_by_part(self, convention: Convention) -> dict[str, int]:
        """Training FLOPs by part: of a decoder's token, of an encoder's sequence or of a pair.

        Where padding's logits are not computed, `matmul` and `mac` are the most that it can cost.
        """
        if isinstance(self.model, EncoderDecoderConfig):
            assert self.source_len is not None
            return flops_per_pair_by_part(self.model, self.source_len, self.seq_len, convention)
        if self.architecture == "encoder":
            predicted = self.predicted_per_sequence
            return flops_per_masked_sequence_by_part(
                self.model, self.seq_len, predicted, convention
            )
        logits = self.logits_per_token
        return flops_per_token_by_part(self.model, self.seq_len, convention, logits)

    def flops_per_step(self, convention: Convention) -> int:
        """Training FLOPs of one optimiser step, gradient accumulation included."""
        each = sum(self.flops_by_part(convention).values())
        if self.architecture == "decoder":
            each *= self.seq_len
        return each * self.sequences_per_step + self.optimizer_flops_per_step(convention)

    def optimizer_flops_per_step(self, convention: Convention) -> int:
        """What the optimiser's matrix products cost; 0 for AdamW, which has none."""
        return self.optimizer_kind.flops_per_step(self.model, convention)

    @property
    def steps(self) -> int:
        """Optimiser steps of a filled configuration.

        Raises:
            ConfigError: num_training_steps is still `fill`.
        """
        if self.num_training_steps == "fill":
            raise ConfigError("num_training_steps is `fill`: give the run a budget (budget_flops)")
        return self.num_training_steps

    @property
    def total_tokens(self) -> int:
        """Training tokens of a filled configuration."""
        return self.steps * self.tokens_per_step

    @property
    def warmup_steps(self) -> int:
        """Warm-up steps of a filled configuration (0 when nothing is said)."""
        if self.num_warmup_steps is not None:
            return self.num_warmup_steps
        return round((self.warmup_fraction or 0.0) * self.steps)

    @property
    def cooldown_steps(self) -> int:
        """Steps of the final line of a filled configuration; the warm-up may cut into them."""
        if self.schedule != "wsd":
            return self.steps
        return round((self.cooldown_fraction or COOLDOWN_FRACTION) * self.steps)

    @property
    def final_lr(self) -> float:
        """Learning rate at the end of the schedule (0.1 · max_lr when nothing is said)."""
        if self.min_lr is not None:
            return self.min_lr
        return self.max_lr * (0.1 if self.min_lr_ratio is None else self.min_lr_ratio)

    def lr_schedule(self) -> Callable[[int], float]:
        """The schedule of a filled configuration: get_lr(t), t from 0."""
        warmup, steps, final = self.warmup_steps, self.steps, self.final_lr
        if self.schedule == "cosine":
            return cosine_lr_schedule(warmup, steps, final, self.max_lr)
        return trapezoid_lr_schedule(warmup, steps, self.cooldown_steps, final, self.max_lr)

    def to_dict(self) -> dict[str, Any]:
        """Plain data under the names of the YAML file; reading it back gives an equal object."""
        data = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        if self.grad_clip is None:  # None means something here: no clipping
            data["grad_clip"] = None
        if self.architecture == "decoder":  # the course's file has none of these keys
            del data["architecture"]
        if self.cuda_graph == "auto":
            del data["cuda_graph"]
        for name in RUN_OPTIONS[self.recipe]:  # left out, the recipe would speak
            data.setdefault(name, None)
        if self.recipe != "gpt2":
            return data
        for name in ("recipe", "schedule", "optimizer"):
            if data[name] == type(self).model_fields[name].default:
                del data[name]
        if isinstance(self.model, ModelConfig):
            kept = {*self.model.sizes(), *self.model.options()}
            data["model_config"] = {n: v for n, v in data["model_config"].items() if n in kept}
        return data

    def with_changes(self, **changes: Any) -> RunConfig:
        """A validated copy with some top-level fields replaced (`model` takes a shape)."""
        data = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).model_validate({**data, **changes})
