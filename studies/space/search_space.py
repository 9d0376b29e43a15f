"""The search space: what may vary, in a dialect close to W&B sweeps.

    parameters:
      n_embd:   {min: 32, max: 256, step: 32}          # whole numbers: int_uniform
      max_lr:   {min: 1e-3, max: 3e-2, distribution: log_uniform_values}
      seq_len:  {values: [64, 128, 256]}
      p_dropout: {value: 0.0}
      num_training_steps: {value: fill}

A name is a key of a run's YAML (those of `model_config` with or without that prefix). `head_dim`
stands for n_head = n_embd / head_dim; n_positions follows seq_len unless it is given (of an
encoder-decoder, n_source_positions source_len and n_target_positions seq_len). `architecture` must
be fixed: losses of different objectives cannot be compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import Field, field_validator, model_validator

from budgetsweep.config import StrictModel, did_you_mean, parse
from budgetsweep.errors import ConfigError
from model.config import EncoderDecoderConfig, ModelConfig
from model.flops import Convention
from trainer.config import ARCHITECTURES, Architecture, RunConfig
from trainer.data.config import DataConfig

Value = bool | int | float | str | None
SamplerName = Literal["tpe", "gp", "random", "qmc", "grid", "law"]

DERIVED = "head_dim"
MODEL_KEYS = (ModelConfig.model_fields.keys() | EncoderDecoderConfig.model_fields.keys()) - {
    "n_vocab"
}
RUN_KEYS = frozenset(RunConfig.model_fields) - {
    "model", "data", "output_dir", "budget_flops", "convention", "device",
}  # fmt: skip
DATA_KEYS = frozenset(f"data.{name}" for name in DataConfig.model_fields)
KNOWN = MODEL_KEYS | RUN_KEYS | {DERIVED}

DISTRIBUTIONS = (
    "constant", "categorical", "int_uniform", "int_log_uniform", "uniform", "q_uniform",
    "log_uniform_values",
)  # fmt: skip


class Parameter(StrictModel):
    """What one name may be: exactly one of a value, a list of values, or a range."""

    value: Value = None
    values: tuple[Value, ...] | None = None
    min: int | float | None = None
    max: int | float | None = None
    step: int | float | None = Field(default=None, gt=0)
    q: int | float | None = Field(default=None, gt=0)
    """W&B's word for step."""
    distribution: str | None = None

    @field_validator("distribution")
    @classmethod
    def _known_distribution(cls, name: str | None) -> str | None:
        if name == "log_uniform":
            raise ValueError("min and max are values here: use log_uniform_values")
        if name is not None and name not in DISTRIBUTIONS:
            raise ValueError(f"unknown distribution{did_you_mean(name, DISTRIBUTIONS)}")
        return name

    @model_validator(mode="after")
    def _one_form(self) -> Parameter:
        is_range = self.min is not None or self.max is not None
        forms = [self.is_fixed, self.values is not None, is_range]
        if sum(forms) != 1:
            raise ValueError("expected one of `value`, `values` or `min` with `max`")
        if self.values is not None:
            if not self.values:
                raise ValueError("values: the list is empty")
            if len(set(map(repr, self.values))) != len(self.values):
                raise ValueError("values: a value is given twice")
        if is_range:
            self._check_range()
        elif self.stride is not None:
            raise ValueError("step goes with min and max")
        return self

    def _check_range(self) -> None:
        if self.min is None or self.max is None:
            raise ValueError("a range needs both min and max")
        if self.min > self.max:
            raise ValueError(f"min = {self.min} is above max = {self.max}")
        if self.is_log and self.min <= 0:
            raise ValueError(f"a logarithmic range needs min > 0, not {self.min}")
        if self.is_log and self.stride is not None:
            raise ValueError("a logarithmic range takes no step")
        if self.step is not None and self.q is not None:
            raise ValueError("give step or q, not both")
        if self.distribution in ("constant", "categorical"):
            raise ValueError(f"distribution {self.distribution} goes with value(s), not a range")
        if (self.distribution or "").startswith("int") and not self.is_integer:
            raise ValueError("an int distribution needs whole min, max and step")

    @property
    def is_fixed(self) -> bool:
        """Whether `value` was given (null counts)."""
        return "value" in self.model_fields_set

    @property
    def stride(self) -> int | float | None:
        """Step between the values of a range."""
        return self.step if self.step is not None else self.q

    @property
    def is_log(self) -> bool:
        """Whether the range is sampled on a logarithmic scale."""
        return self.distribution in ("log_uniform_values", "int_log_uniform")

    @property
    def is_integer(self) -> bool:
        """Whether the range holds whole numbers only."""
        if self.distribution in ("uniform", "q_uniform", "log_uniform_values"):
            return False
        numbers = (self.min, self.max, 1 if self.stride is None else self.stride)
        return all(isinstance(number, int) for number in numbers)

    @property
    def is_ordinal(self) -> bool:
        """Whether the values are numbers in ascending order, so that neighbours are alike."""
        values = self.values
        if values is None or len(values) < 3:
            return False
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        return len(numbers) == len(values) and numbers == sorted(numbers)

    def distribution_for_optuna(self) -> BaseDistribution | None:
        """Optuna's distribution; None for a fixed value.

        Ascending lists of three or more numbers become their index 0…n-1, so that samplers know
        that 64 lies between 32 and 128; `decode` turns the index back.
        """
        if self.is_fixed:
            return None
        if self.values is not None:
            if self.is_ordinal:
                return IntDistribution(0, len(self.values) - 1)
            return CategoricalDistribution(self.values)
        assert self.min is not None
        assert self.max is not None
        if self.is_integer:
            step = 1 if self.stride is None else int(self.stride)
            high = int(self.min) + (int(self.max) - int(self.min)) // step * step
            return IntDistribution(int(self.min), high, log=self.is_log, step=step)
        return FloatDistribution(
            float(self.min),
            float(self.max),
            log=self.is_log,
            step=None if self.stride is None else float(self.stride),
        )

    def decode(self, drawn: Any) -> Value:
        """The setting that a drawn value stands for."""
        if self.is_ordinal:
            assert self.values is not None
            return self.values[int(drawn)]
        return drawn

    def encode(self, setting: Value) -> Any:
        """The drawn value that stands for a setting; the inverse of `decode`.

        Raises:
            ValueError: the setting is not one of the values.
        """
        if self.is_ordinal:
            assert self.values is not None
            return self.values.index(setting)
        return setting

    def count(self) -> int | None:
        """How many different values there are; None for a continuous range."""
        if self.is_fixed:
            return 1
        if self.values is not None:
            return len(self.values)
        distribution = self.distribution_for_optuna()
        assert isinstance(distribution, IntDistribution | FloatDistribution)
        if distribution.low == distribution.high:
            return 1
        if distribution.step is None:
            return None
        return int((distribution.high - distribution.low) / distribution.step + 1e-9) + 1

    def all_values(self) -> list[Value]:
        """Every value of a finite parameter, ascending."""
        if self.is_fixed:
            return [self.value]
        if self.values is not None:
            return list(self.values)
        number = self.count()
        assert number is not None
        assert self.min is not None
        step = 1 if self.stride is None else self.stride
        return [self.min + index * step for index in range(number)]

    def setting_at(self, q: float) -> Value:
        """The setting at quantile q in [0, 1) of a variable parameter."""
        if self.values is not None:
            return self.values[int(q * len(self.values))]
        distribution = self.distribution_for_optuna()
        assert isinstance(distribution, IntDistribution | FloatDistribution)
        low, high = distribution.low, distribution.high
        if distribution.log:
            half = 0.5 if self.is_integer else 0.0
            first, last = math.log(low - half), math.log(high + half)
            drawn = math.exp(first + q * (last - first))
            return min(max(round(drawn) if self.is_integer else drawn, low), high)
        number = self.count()
        if number is None:
            return low + q * (high - low)
        return low + int(q * number) * (distribution.step or 0)


class SearchSpace(StrictModel):
    """The parameters of a search, and what a space file may say beside them."""

    parameters: dict[str, Parameter]
    budget: float | None = Field(default=None, ge=1.0)
    """Training FLOPs per trial; `--budget` overrides it."""
    convention: Convention | None = None
    method: SamplerName | Literal["bayes"] | None = None
    """Sampler; W&B's `bayes` means tpe."""
    seed: int | None = None

    @field_validator("parameters", mode="before")
    @classmethod
    def _names(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not data:
            raise ValueError("expected names with value, values or min and max")
        result: dict[str, Any] = {}
        for name, parameter in data.items():
            if not isinstance(name, str):
                raise ValueError(f"{name!r} is not a name")
            short = name.removeprefix("model_config.")
            known = DATA_KEYS if name.startswith("data.") else KNOWN
            if short not in known:
                raise ValueError(f"unknown parameter {name!r}{did_you_mean(short, known)}")
            if short in result:
                raise ValueError(f"parameter {short!r} is given twice")
            # `n_layer: 4` and `seq_len: [64, 128]` are short for value and values.
            if isinstance(parameter, list):
                parameter = {"values": parameter}
            elif not isinstance(parameter, dict | Parameter):
                parameter = {"value": parameter}
            result[short] = parameter
        return result

    @model_validator(mode="after")
    def _consistent(self) -> SearchSpace:
        names = self.parameters
        if "head_dim" in names and "n_head" in names:
            raise ValueError("give head_dim or n_head, not both")
        for one, other in (("min_lr", "min_lr_ratio"), ("num_warmup_steps", "warmup_fraction")):
            if one in names and other in names:
                raise ValueError(f"give {one} or {other}, not both")
        self._check_architecture()
        needed = {"n_embd", "seq_len", "batch_size", "max_lr"}
        if self.architecture == "encoder-decoder":
            needed |= {"n_encoder_layer", "n_decoder_layer", "source_len"}
        else:
            needed.add("n_layer")
        missing = sorted(needed - names.keys())
        if not names.keys() & {"n_head", "head_dim"}:
            missing.append("head_dim")
        if missing:
            raise ValueError(f"parameters lacks {', '.join(missing)}")
        return self

    def _check_architecture(self) -> None:
        parameter = self.parameters.get("architecture")
        if parameter is not None and not (parameter.is_fixed and parameter.value in ARCHITECTURES):
            raise ValueError(
                f"architecture: expected one value, {', '.join(ARCHITECTURES)}: losses of "
                "different objectives cannot be compared within a study"
            )

    @property
    def architecture(self) -> Architecture:
        """What all runs of the search train."""
        parameter = self.parameters.get("architecture")
        return "decoder" if parameter is None else parameter.value  # type: ignore[return-value]

    def to_dict(self) -> dict[str, Any]:
        """Plain data that reads back to an equal space."""
        dumped = self.model_dump(mode="json", exclude_unset=True)
        return {key: value for key, value in dumped.items() if value is not None}

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distributions of what varies; all are asked for at once."""
        found = {
            name: parameter.distribution_for_optuna() for name, parameter in self.parameters.items()
        }
        return {name: distribution for name, distribution in found.items() if distribution}

    def decode(self, drawn: Mapping[str, Any]) -> dict[str, Value]:
        """Settings by name from what a sampler drew; fixed ones are not among them."""
        return {name: self.parameters[name].decode(value) for name, value in drawn.items()}

    def encode(self, settings: Mapping[str, Value]) -> dict[str, Any]:
        """What a sampler would have drawn for `settings`."""
        return {name: self.parameters[name].encode(value) for name, value in settings.items()}

    def size(self) -> int | None:
        """Number of different proposals; None when a parameter is continuous."""
        total = 1
        for parameter in self.parameters.values():
            number = parameter.count()
            if number is None:
                return None
            total *= number
        return total

    def run_data(self, settings: Mapping[str, Value], base: Mapping[str, Any]) -> dict[str, Any]:
        """Plain data for a `RunConfig` of decoded `settings` and the run settings in `base`.

        They are not yet checked: an impossible shape shows when they are parsed.
        """
        fixed = {name: p.value for name, p in self.parameters.items() if p.is_fixed}
        everything = {**fixed, **settings}
        run = {key: value for key, value in base.items() if key not in ("model_config", "data")}
        shape: dict[str, Any] = dict(base.get("model_config", {}))
        data: dict[str, Any] = dict(base.get("data", {}))
        head_dim = everything.pop(DERIVED, None)
        for name, value in everything.items():
            if name.startswith("data."):
                data[name.removeprefix("data.")] = value
            elif name in MODEL_KEYS:
                shape[name] = value
            else:
                run[name] = value
        if self.architecture == "encoder-decoder":
            shape.setdefault("n_source_positions", run.get("source_len"))
            shape.setdefault("n_target_positions", run.get("seq_len"))
        else:
            shape.setdefault("n_positions", run.get("seq_len"))
        if head_dim is not None:
            # A remainder leaves one head too many, so that the shape is refused as invalid.
            width, of_head = int(shape["n_embd"]), int(head_dim)
            exact = width % of_head == 0
            shape["n_head"] = width // of_head if exact else width + 1
        return {**run, "model_config": shape, "data": data}

    def random_settings(self, rng: np.random.Generator) -> dict[str, Value]:
        """One proposal drawn uniformly, without Optuna (for dry runs and estimates)."""
        return {
            name: parameter.setting_at(rng.random())
            for name, parameter in self.parameters.items()
            if not parameter.is_fixed
        }


def space_from_dict(data: Mapping[str, Any], where: str) -> SearchSpace:
    """A `SearchSpace` from plain data; W&B's `name`, `metric` and `program` keys are understood.

    Raises:
        ConfigError: unknown keys or names, or a metric other than the validation loss.
    """
    data = dict(data)
    metric = data.pop("metric", None)
    if metric is not None and (
        not isinstance(metric, dict)
        or metric.get("goal", "minimize") != "minimize"
        or str(metric.get("name", "val_loss")).replace("-", "_").replace("/", "_")
        not in ("val_loss", "val_loss_nats", "val_ppl", "val_perplexity")
    ):
        raise ConfigError(f"{where}: metric: a search minimises val_loss, nothing else")
    for ignored in ("name", "description", "program", "command"):
        data.pop(ignored, None)
    return parse(SearchSpace, data, where)
