"""Proposals: what to try next, as a pure function of (seed, number, results so far).

Two Optuna studies hold the same trials. One lives in memory and feeds the sampler, so asking costs
no database round trip a parameter. The other, in the study's database, is the record that Optuna's
own tools read. It is written by `record`, while workers train: a trial whole, in one transaction,
in the order of events. After a kill it may lag behind our own tables, never lead them by more than
an undecided proposal, and `restore` mends that.

Optuna does not store a sampler's random state, so a resumed study would propose something else
than an uninterrupted one. Here the sampler is made anew from (seed, number) for every proposal.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from budgetsweep.errors import ConfigError, StudyError
from studies.database.connection import clear_errors, describe, open_patiently, tune_sqlite
from studies.samplers.law import LawSampler, Result
from studies.samplers.registry import SamplerName, TrialWindow, make_sampler, report
from studies.space.search_space import SearchSpace, Value

RANDOM_AFTER_REJECTIONS = 25
"""After so many refused proposals in a row the sampler is stuck; the next ones are random."""


@dataclass(frozen=True)
class Proposal:
    """What to try: its number in the study and the settings of what varies."""

    number: int
    settings: dict[str, Value]


class SpaceExhausted(Exception):
    """Every point of a grid has been proposed."""


class Proposals:
    """The Optuna side of a study: proposes, and is told how it went."""

    def __init__(
        self,
        url: str | None,
        study_name: str,
        space: SearchSpace,
        sampler: SamplerName,
        seed: int,
        first: Mapping[str, Value] | None,
        pruning: bool,
        law: LawSampler | None = None,
    ) -> None:
        """Open or create the Optuna study.

        Args:
            url: SQLAlchemy URL of the study's database; None: no record is kept. It costs half of
                a simulated search, and `restore` brings back from our own tables what it holds.
            study_name: name shared with our own study row.
            space: what varies.
            sampler: one of `SamplerName`.
            seed: seed of the search.
            first: settings of proposal 0; None: the sampler's own.
            pruning: whether `report` may say to stop.
            law: what `--sampler law` asks; the other samplers need none.

        Raises:
            ConfigError: a grid over a continuous parameter.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        self._sampler: SamplerName = sampler
        self._seed = seed
        self._first = first
        self._law = law
        self._is_finite = space.size() is not None
        self._budgets: dict[int, int] = {}
        """Training FLOPs of proposals, by number, where they were told."""
        self._distributions = space.distributions()
        self._grid = _grid_order(space, seed) if sampler == "grid" else None
        self._record = None if url is None else _Record(url, study_name)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=5) if pruning else None
        self._memory = optuna.create_study(
            direction="minimize", pruner=pruner or optuna.pruners.NopPruner()
        )
        if self._record is not None:
            self._memory.add_trials(self._record.study.get_trials(deepcopy=False))
        self._window = TrialWindow(self._distributions)

    def close(self) -> None:
        """Write what is not on record yet, and let go of the database."""
        if self._record is not None:
            self._record.close()

    def __len__(self) -> int:
        """Proposals made so far."""
        return len(self._memory.get_trials(deepcopy=False))

    def propose(self, *, rejected_in_a_row: int = 0, budget_flops: int | None = None) -> Proposal:
        """The next proposal, running.

        Raises:
            SpaceExhausted: the grid has no more points.
        """
        number = len(self)
        drawn = self._drawn(number, rejected_in_a_row, budget_flops)
        settings = self._space.decode(drawn)
        self._add(number, drawn, settings)
        self.has_budget(number, budget_flops)
        return Proposal(number, settings)

    def restore(self, number: int, settings: Mapping[str, Value]) -> None:
        """Bring back, running, a proposal that our own tables know and the record may not.

        Proposals are restored in the order of their numbers.
        """
        if number == len(self):
            self._add(number, self._space.encode(settings), settings)

    def _add(self, number: int, drawn: dict[str, Any], settings: Mapping[str, Value]) -> None:
        trial = create_trial(
            state=TrialState.RUNNING,
            params=drawn,
            distributions=self._distributions,
            user_attrs={"settings": dict(settings)},
        )
        trial.datetime_start = dt.datetime.now(dt.UTC).replace(tzinfo=None)
        self._memory.add_trial(trial)
        self._window.add(number, trial)
        self._keep(lambda study: study.add_trial(trial))

    def record(self) -> None:
        """Write to the record what happened since the last call.

        Raises:
            StudyError: the database cannot be written (locked, full disk).
        """
        if self._record is not None:
            self._record.write()

    def _keep(self, change: Callable[[Study], object]) -> None:
        if self._record is not None:
            self._record.unwritten.append(change)

    def _drawn(
        self, number: int, rejected_in_a_row: int, budget_flops: int | None
    ) -> dict[str, Any]:
        if number == 0 and self._first is not None:
            return self._space.encode(self._first)
        if self._grid is not None:
            return self._grid_point(number)
        stuck = rejected_in_a_row >= RANDOM_AFTER_REJECTIONS
        if self._sampler == "law" and not stuck:
            proposed = self._by_law(number, budget_flops)
            return self._qmc_point(number) if proposed is None else self._space.encode(proposed)
        if self._sampler == "qmc" and not stuck:
            return self._qmc_point(number)
        sampler = make_sampler("random" if stuck else self._sampler, _mix(self._seed, number))
        return self._window.ask(number, sampler, self._memory.get_trials(deepcopy=False))

    def _by_law(self, number: int, budget_flops: int | None) -> dict[str, Value] | None:
        """What the law proposes; None where it has too little to go on."""
        if self._law is None:
            return None
        trials = self._memory.get_trials(deepcopy=False)
        results = [
            Result(trial.number, _settings(trial), trial.value, self._budgets.get(trial.number))
            for trial in trials
            if trial.state == TrialState.COMPLETE and trial.value is not None
        ]
        # Of a few points each may be tried at every budget; among many there is always a new one.
        taken = [
            _settings(trial)
            for trial in trials
            if not self._is_finite
            or budget_flops is None
            or self._budgets.get(trial.number, budget_flops) == budget_flops
        ]
        seed = _mix(self._seed, number)
        return self._law.propose(seed, number, results, taken, budget_flops)

    def _grid_point(self, number: int) -> dict[str, Any]:
        assert self._grid is not None
        index = number if self._first is None else number - 1
        if index >= len(self._grid):
            raise SpaceExhausted
        names = list(self._distributions)
        choices = [self._space.parameters[name].all_values() for name in names]
        point = np.unravel_index(self._grid[index], [len(values) for values in choices])
        settings = {
            name: values[int(i)] for name, values, i in zip(names, choices, point, strict=True)
        }
        return self._space.encode(settings)

    def _qmc_point(self, number: int) -> dict[str, Any]:
        from scipy.stats import qmc

        names = list(self._distributions)
        sobol = qmc.Sobol(len(names), scramble=True, rng=np.random.default_rng(self._seed))
        if number:
            sobol.fast_forward(number)
        with warnings.catch_warnings():  # one point at a time is not a power of two, as intended
            warnings.simplefilter("ignore", UserWarning)
            point = sobol.random(1)[0]
        return {
            name: self._space.parameters[name].at_quantile(min(float(q), math.nextafter(1.0, 0.0)))
            for name, q in zip(names, point, strict=True)
        }

    def report(self, number: int, fraction: float, val_loss_nats: float) -> bool:
        """Record a validation loss at a fraction of the budget; True: the pruner would stop.

        Fractions are compared in thousandths, so runs of different lengths meet at equal shares
        of their budget, never at equal steps.
        """
        key = round(1000 * fraction)

        report(self._memory, number, key, val_loss_nats)
        self._window.report(number, key, val_loss_nats)
        self._keep(lambda study: report(study, number, key, val_loss_nats))
        frozen = self._memory.get_trials(deepcopy=False)[number]
        return bool(self._memory.pruner.prune(self._memory, frozen))

    def complete(self, number: int, val_loss_nats: float, budget_flops: int | None = None) -> None:
        """The trial ended with this loss. Nothing happens if that is on record already.

        Args:
            number: the proposal's.
            val_loss_nats: of the whole run.
            budget_flops: that it was given; None: that of the search (`law` looks at it).
        """
        self.has_budget(number, budget_flops)
        self._tell(number, TrialState.COMPLETE, val_loss_nats)

    def has_budget(self, number: int, budget_flops: int | None) -> None:
        """Say what a trial was given to spend; after a restart too, for the record has no place."""
        if budget_flops is not None:
            self._budgets[number] = budget_flops

    def fail(self, number: int) -> None:
        """The proposal was refused or its trial failed: samplers leave it out of account."""
        self._tell(number, TrialState.FAIL, None)

    def prune(self, number: int) -> None:
        """The trial was stopped early."""
        self._tell(number, TrialState.PRUNED, None)

    def _tell(self, number: int, state: TrialState, value: float | None) -> None:
        if self._memory.get_trials(deepcopy=False)[number].state != TrialState.RUNNING:
            return
        self._memory.tell(number, value, state=state)
        self._window.tell(number, value, state)
        self._keep(lambda study: study.tell(number, value, state=state))

    def open_proposals(self) -> list[Proposal]:
        """Proposals whose end is not on record, in order (after a kill)."""
        return [
            Proposal(trial.number, _settings(trial))
            for trial in self._memory.get_trials(deepcopy=False)
            if trial.state == TrialState.RUNNING
        ]


class _Record:
    """The Optuna study in the database, and what is not in it yet."""

    def __init__(self, url: str, study_name: str) -> None:
        self._where = describe(url)
        # Two processes that make Optuna's tables at once fail by turns; patience sorts them out.
        storage = open_patiently(lambda: RDBStorage(url, engine_kwargs={"pool_pre_ping": True}))
        tune_sqlite(storage.engine)
        self._engine = storage.engine
        self.study = optuna.create_study(
            storage=storage, study_name=study_name, direction="minimize", load_if_exists=True
        )
        self.unwritten: deque[Callable[[Study], object]] = deque()

    def write(self) -> None:
        """Write what happened since the last call."""
        while self.unwritten:
            with clear_errors(self._where):
                try:
                    self.unwritten[0](self.study)
                except StorageInternalError as error:  # Optuna's wrapping of SQLAlchemy's
                    raise (error.__cause__ or error) from error
            self.unwritten.popleft()

    def close(self) -> None:
        with contextlib.suppress(StudyError):  # said already; the next start restores it
            self.write()
        self._engine.dispose()


def _settings(trial: FrozenTrial) -> dict[str, Value]:
    return dict(trial.user_attrs["settings"])


def _mix(seed: int, number: int) -> int:
    """A 32-bit seed from (seed, number), without collisions between neighbours."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _grid_order(space: SearchSpace, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """All grid points in a shuffled order, so that an early stop has seen every region."""
    for name, parameter in space.parameters.items():
        if parameter.count() is None:
            raise ConfigError(
                f"--sampler grid: {name} is continuous; give it values: [...] or a step, "
                "or use --sampler qmc"
            )
    size = space.size()
    assert size is not None
    if size > 1_000_000:
        raise ConfigError(
            f"--sampler grid: the space has {size:,} points; use --sampler qmc or fewer values"
        )
    return np.random.default_rng(seed).permutation(size)
