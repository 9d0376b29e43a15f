"""A sampler that knows what a loss looks like: `--sampler law`.

A linear model of the loss in features that the field's laws name: A/N^alpha and B/D^beta, squared
distances of learning rate and batch from published optima, aspect ratio, every other setting's
line and bow, and a smooth rest (random Fourier features) for what all these miss. Priors are wide
around published values, so a search begins near a sensible place and follows its own results.

For each proposal one model is drawn from the posterior (Thompson 1933) and its lowest loss at the
search's budget is looked for: configurations are priced by the constraint, so every one is
affordable and its tokens are exact.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from budgetsweep.constraint import Admitted, admit
from studies.diagnosis.curves import FloatArray
from studies.samplers.base import BUDGET, NUMBER, SearchProblem, SettingsSampler
from studies.samplers.qmc import QmcSampler
from studies.scaling.covariates import CONTEXT_NATS, CONTEXT_SD
from studies.scaling.law import steplaw_batch_tokens, steplaw_lr
from studies.space.search_space import SearchSpace, Value
from trainer.config import RunConfig

START = 4
"""Proposals that only spread over the space before the model is asked (*assumption*)."""
MODELS = 24
"""Draws of what is not linear in the model, weighed by how well they explain the results."""
FOURIER = 64
CANDIDATES = 160
ROUNDS = 7
PARENTS = 10
CHILDREN = 5
"""Of each parent in each round of the search for a draw's lowest loss."""

NEAR_NATS = 0.3
"""A result so far above the best one of its budget counts less and less: a bowl is one near by."""
SAME_BUDGET = 0.5
"""Logarithm of a factor: the best one is that of the results with about as many FLOPs."""
FAR_SD = 0.25
"""Standard deviation of what is not explained, for each nat beyond that."""


class LawSampler(SettingsSampler):
    """Proposes by a drawn law; quasi-random points where there is too little to go on."""

    def __init__(self, problem: SearchProblem) -> None:
        """Begin without results."""
        super().__init__(problem)
        self._spread = QmcSampler(problem)
        self._features = _Features(problem.space, problem.sizes_only)
        self._is_finite = problem.space.size() is not None
        self._rows: dict[int, FloatArray | None] = {}
        """Features of finished trials, by number."""

    def settings(self, study: Study, trial: FrozenTrial) -> Mapping[str, Value]:
        """Settings of the lowest loss of a drawn model."""
        number, budget = trial.user_attrs[NUMBER], trial.user_attrs[BUDGET]
        trials = [one for one in study.get_trials(deepcopy=False) if one.number != trial.number]
        found, taken = [], set()
        for one in trials:
            settings = self.problem.space.decode(one.params)
            # Of few points each may be tried at every budget; among many there is always a new one.
            if not self._is_finite or one.user_attrs[BUDGET] == budget:
                taken.add(_key(settings))
            if one.state == TrialState.COMPLETE and one.value is not None:
                row = self._row(one, settings)
                if row is not None and math.isfinite(one.value):
                    found.append((row, one.value, settings))
        if number < START or len(found) < START - 1:
            return self._spread.settings(study, trial)
        rng = np.random.default_rng(self.problem.seed_of(number))
        x, y = np.array([row for row, _, _ in found]), np.array([loss for _, loss, _ in found])
        predict = _drawn_model(self._features, x, y, rng)
        parents = [found[i][2] for i in np.argsort(y, kind="stable")[:PARENTS]]
        # What is best at a larger budget is too large to learn a law from: every other trial is
        # the best one for its own.
        price = self._later if number % 2 else lambda s: self._config(s, budget)
        lowest = self._lowest(predict, price, parents, taken, rng)
        return self._spread.settings(study, trial) if lowest is None else lowest

    def _row(self, trial: FrozenTrial, settings: Mapping[str, Value]) -> FloatArray | None:
        number = trial.user_attrs[NUMBER]
        if number not in self._rows:
            config = self._config(settings, trial.user_attrs[BUDGET])
            self._rows[number] = None if config is None else self._features.of(config, settings)
        return self._rows[number]

    def _config(self, settings: Mapping[str, Value], budget_flops: int) -> RunConfig | None:
        limits = self.problem.limits
        if budget_flops != limits.budget_flops:
            limits = dataclasses.replace(limits, budget_flops=budget_flops)
        answer = admit(self.problem.space.run_data(settings, self.problem.base), limits)
        return answer.config if isinstance(answer, Admitted) else None

    def _later(self, settings: Mapping[str, Value]) -> RunConfig | None:
        """What becomes of settings at the budget whose loss is to be lowest."""
        config = self._config(settings, self.problem.limits.budget_flops)
        if config is None or self.problem.promoted is None:
            return config
        return self.problem.promoted(config)

    def _lowest(
        self,
        predict: Callable[[FloatArray], FloatArray],
        price: Callable[[Mapping[str, Value]], RunConfig | None],
        parents: list[dict[str, Value]],
        known: set[tuple[Any, ...]],
        rng: np.random.Generator,
    ) -> dict[str, Value] | None:
        """Evolution from the best trials and random ones."""
        pool: dict[tuple[Any, ...], tuple[float, dict[str, Value]]] = {}
        fresh = parents + [self.problem.space.random_settings(rng) for _ in range(CANDIDATES)]
        for _ in range(ROUNDS + 1):
            new: dict[tuple[Any, ...], tuple[FloatArray, dict[str, Value]]] = {}
            for settings in fresh:
                key = _key(settings)
                if key in pool or key in new:
                    continue
                config = price(settings)
                if config is not None:
                    new[key] = (self._features.of(config, settings), settings)
            if new:
                losses = predict(np.array([row for row, _ in new.values()]))
                for (key, (_, settings)), loss in zip(new.items(), losses, strict=True):
                    pool[key] = (float(loss), settings)
            ranked = sorted(pool.items(), key=lambda item: item[1][0])[:PARENTS]
            fresh = [
                self._features.places.neighbour(settings, rng)
                for _, (_, settings) in ranked
                for _ in range(CHILDREN)
            ]
        free = [(loss, settings) for key, (loss, settings) in pool.items() if key not in known]
        return min(free, key=lambda one: one[0])[1] if free else None


def _key(settings: Mapping[str, Value]) -> tuple[Any, ...]:
    return tuple(sorted((name, str(value)) for name, value in settings.items()))


class Places:
    """Where settings lie in their ranges, and what lies beside them."""

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._ranges: dict[str, tuple[float, float, bool]] = {}
        """(low, high, logarithmic) of what has an order."""
        self._indices: dict[str, dict[Value, int]] = {}
        for name, parameter in space.parameters.items():
            if parameter.is_ordinal:
                assert parameter.values is not None
                self._indices[name] = {value: i for i, value in enumerate(parameter.values)}
                self._ranges[name] = (0.0, len(parameter.values) - 1.0, False)
            elif parameter.min is not None and parameter.max is not None:
                ends = (float(parameter.min), float(parameter.max))
                low, high = map(math.log, ends) if parameter.is_log else ends
                self._ranges[name] = (low, high, parameter.is_log)

    def has_order(self, name: str) -> bool:
        """Whether neighbouring values of a parameter are alike."""
        return name in self._ranges

    def unit(self, name: str, setting: Value) -> float:
        """A setting's place in its range, 0 to 1."""
        low, high, log = self._ranges[name]
        value = float(self._indices[name][setting] if name in self._indices else setting)  # type: ignore[arg-type]
        if log:
            value = math.log(value)
        return min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.5

    def neighbour(
        self, settings: Mapping[str, Value], rng: np.random.Generator
    ) -> dict[str, Value]:
        """Settings with one to three of them moved a little or drawn anew."""
        result = dict(settings)
        names = list(settings)
        number = 1 + int(rng.integers(min(3, len(names))))
        for index in rng.permutation(len(names))[:number]:
            name, quantile = names[index], rng.random()
            if name in self._ranges and rng.random() < 0.7:
                quantile = self.unit(name, result[name]) + 0.15 * float(rng.standard_normal())
                quantile = min(max(quantile, 0.0), 0.999999)
            result[name] = self._space.parameters[name].setting_at(quantile)
        return result


class _Features:
    """A configuration as numbers, and the settings around it."""

    def __init__(self, space: SearchSpace, sizes_only: bool) -> None:
        self._sizes_only = sizes_only
        self.places = Places(space)
        names = [name for name, parameter in space.parameters.items() if parameter.count() != 1]
        self._numeric = [name for name in names if self.places.has_order(name)]
        self._choices = [
            (name, value)
            for name in names
            if name not in self._numeric
            for value in space.parameters[name].values or ()
        ]
        self.n_units, self.n_choices = len(self._numeric), len(self._choices)

    def of(self, config: RunConfig, settings: Mapping[str, Value]) -> FloatArray:
        """A configuration's row.

        Ln N, ln D, ln of rate and batch over StepLaw's, ln of width / depth, 1 / context; places;
        choices.
        """
        tokens = float(config.total_tokens)
        size = float(config.n_active_params)
        batch = math.log(config.tokens_per_step / steplaw_batch_tokens(tokens))
        lr = math.log(max(config.max_lr, 1e-12) / steplaw_lr(size, tokens)) - 0.5 * batch
        aspect, context = math.log(config.model.n_embd / config.model.depth), 1.0 / config.seq_len
        if self._sizes_only:
            lr, batch, aspect, context = 0.0, 0.0, ASPECT, CONTEXT
        units = [self.places.unit(name, settings[name]) for name in self._numeric]
        choices = [float(settings[name] == value) for name, value in self._choices]
        law = [math.log(size), math.log(tokens), lr, batch, aspect, context]
        return np.array([*law, *units, *choices])


@dataclass(frozen=True)
class _Basis:
    """What makes the model linear: exponents, the middle of the data, frequencies of the rest."""

    alpha: float
    beta: float
    centre: FloatArray
    frequencies: FloatArray
    phases: FloatArray
    n_units: int
    rest_nats: float
    noise_nats: float

    def columns(self, x: FloatArray) -> FloatArray:
        """(rows, weights)."""
        size = np.exp(-self.alpha * (x[:, 0] - self.centre[0]))
        data = np.exp(-self.beta * (x[:, 1] - self.centre[1]))
        lr, batch, aspect = x[:, 2], x[:, 3], x[:, 4] - ASPECT
        context = x[:, 5] - CONTEXT
        units = x[:, 6 : 6 + self.n_units] - 0.5
        choices = x[:, 6 + self.n_units :]
        law = [np.ones(len(x)), size, data]
        tuning = [lr, lr**2, batch, batch**2, lr * batch, aspect, aspect**2, context]
        place = np.hstack([(x[:, :2] - self.centre[:2]) / 2.0, units * 2.0, choices])
        waves = np.cos(place @ self.frequencies + self.phases) * math.sqrt(2.0 / len(self.phases))
        return np.hstack(
            [np.stack([*law, *tuning], axis=1), units, units**2 - 0.08, choices, waves]
        )

    def priors(self, n_choices: int) -> tuple[FloatArray, FloatArray]:
        """Means and standard deviations of the weights."""
        means = [*(m for m, _ in PRIOR_LAW), *(m for m, _ in PRIOR_TUNING)]
        sds = [*(s for _, s in PRIOR_LAW), *(s for _, s in PRIOR_TUNING)]
        others = [LINE_SD] * self.n_units + [BOW_SD] * self.n_units + [CHOICE_SD] * n_choices
        waves = [self.rest_nats] * len(self.phases)
        zeros = [0.0] * (len(others) + len(waves))
        return np.array([*means, *zeros]), np.array([*sds, *others, *waves])


ASPECT = math.log(40.0)
CONTEXT = 1.0 / 128
"""Where the lines of both are zero."""
PRIOR_LAW = ((1.9, 0.4), (1.7, 0.8), (1.7, 0.8))
"""Mean and standard deviation in nats of E and of both terms in the middle of the results."""
PRIOR_TUNING = (
    (0.0, 0.08), (0.05, 0.03), (0.0, 0.05), (0.025, 0.02), (0.0, 0.03), (0.0, 0.02), (0.008, 0.008),
    (CONTEXT_NATS, CONTEXT_SD),
)  # fmt: skip
"""Of learning rate, its square, batch, its square, both, aspect, its square: optima within a factor
of about two of StepLaw's, 0.05 nats for a rate e times off (Porian et al. 2024 gained 0.67 by
tuning), half of it for a batch (*assumptions* as to their widths); of 1 / context."""
LEAST_CURVATURE = 0.005
"""Nats: a drawn optimum of learning rate or batch is one, not a slope without end."""
LINE_SD, BOW_SD, CHOICE_SD = 0.06, 0.06, 0.04
"""Nats over the whole range of any other setting (*assumption*)."""


def _drawn_model(
    features: _Features, x: FloatArray, y: FloatArray, rng: np.random.Generator
) -> Callable[[FloatArray], FloatArray]:
    """Losses of rows of features: one draw of the posterior given `x` and the losses `y`."""
    n_places = 2 + features.n_units + features.n_choices
    frequencies = rng.standard_normal((n_places, FOURIER))
    phases = rng.uniform(0.0, 2.0 * math.pi, FOURIER)
    compute = x[:, 0] + x[:, 1]
    alike = np.abs(compute[:, None] - compute[None]) < SAME_BUDGET
    best = np.where(alike, y[None], np.inf).min(axis=1)
    far = FAR_SD * np.maximum(0.0, y - best - NEAR_NATS)
    models = []
    for _ in range(MODELS):
        basis = _Basis(
            alpha=0.3 * math.exp(0.35 * rng.standard_normal()),
            beta=0.3 * math.exp(0.35 * rng.standard_normal()),
            centre=np.median(x[:, :2], axis=0),
            frequencies=frequencies,
            phases=phases,
            n_units=features.n_units,
            rest_nats=0.04 * math.exp(rng.standard_normal()),
            noise_nats=0.012 * math.exp(0.7 * rng.standard_normal()),
        )
        phi = basis.columns(x)
        means, sds = basis.priors(features.n_choices)
        sigma = np.hypot(basis.noise_nats, far)
        rest = y - phi @ means
        scaled = phi * sds
        root = np.linalg.cholesky(scaled @ scaled.T + np.diag(sigma**2))
        white = np.linalg.solve(root, rest)
        evidence = -0.5 * float(white @ white) - float(np.log(np.diag(root)).sum())
        models.append((evidence, basis, root, white, scaled, means, sds, sigma))
    scores = np.array([model[0] for model in models])
    weights = np.exp(scores - scores.max())
    chosen = int(rng.choice(len(models), p=weights / weights.sum()))
    _, basis, root, white, scaled, means, sds, sigma = models[chosen]
    # A draw of the posterior by conditioning a draw of the prior (Matheron's rule).
    prior = rng.standard_normal(len(means))
    noise = sigma * rng.standard_normal(len(y))
    gap = y - basis.columns(x) @ means - scaled @ prior - noise
    drawn = prior + scaled.T @ np.linalg.solve(root.T, np.linalg.solve(root, gap))
    theta = means + sds * drawn
    for square in (len(PRIOR_LAW) + 1, len(PRIOR_LAW) + 3):
        theta[square] = max(theta[square], LEAST_CURVATURE)

    def predict(rows: FloatArray) -> FloatArray:
        return basis.columns(rows) @ theta

    return predict
