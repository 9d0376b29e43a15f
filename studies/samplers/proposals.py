"""Proposals: what to try next, as a pure function of (seed, number, results so far).

Two Optuna studies hold the same trials. One lives in memory and feeds the sampler, so asking costs
no database round trip a parameter. The other, in the study's database, is the record that Optuna's
own tools read. It is written by `record`, while workers train: a trial whole, in one transaction,
in the order of events. After a kill it may lag behind our own tables, never lead them by more than
an undecided proposal, and `restore` fixes that.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from budgetsweep.errors import StudyError
from studies.database.connection import clear_errors, describe, open_patiently, tune_sqlite
from studies.samplers.base import BUDGET, NUMBER, SearchProblem
from studies.samplers.registry import SAMPLERS
from studies.samplers.window import TrialWindow
from studies.space.search_space import SamplerName, Value

RANDOM_AFTER_REJECTIONS = 25
"""After so many refused proposals in a row the sampler is stuck; the next ones are random."""


@dataclass(frozen=True)
class Proposal:
    """What to try: its number in the study and the settings of what varies."""

    number: int
    settings: dict[str, Value]


class Proposals:
    """The Optuna side of a study: proposes, and hears how it went."""

    def __init__(
        self,
        url: str | None,
        study_name: str,
        problem: SearchProblem,
        sampler: SamplerName,
        pruning: bool,
    ) -> None:
        """Open or create the Optuna study.

        `url` is that of the study's database; None: no record is kept. It costs half of a simulated
        search, and `restore` brings back from our own tables what it holds.

        Raises:
            ConfigError: a grid over a continuous parameter.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._problem = problem
        self._sampler = SAMPLERS[sampler](problem)
        # A grid proposes no point twice, so it goes on by itself.
        self._when_stuck = self._sampler if sampler == "grid" else SAMPLERS["random"](problem)
        self._record = None if url is None else _Record(url, study_name)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=5) if pruning else None
        self._memory = optuna.create_study(
            direction="minimize", pruner=pruner or optuna.pruners.NopPruner()
        )
        if self._record is not None:
            self._memory.add_trials(self._record.study.get_trials(deepcopy=False))
        self._window = TrialWindow(problem)

    def close(self) -> None:
        """Write what is not stored yet, and let go of the database."""
        if self._record is not None:
            self._record.close()

    def __len__(self) -> int:
        """Proposals made so far."""
        return len(self._memory.get_trials(deepcopy=False))

    def propose(self, *, rejected_in_a_row: int = 0, budget_flops: int | None = None) -> Proposal:
        """The next proposal, running.

        `rejected_in_a_row` were refused since the last one that was not. A run of it will have
        `budget_flops`; None: the search's.

        Raises:
            SpaceExhausted: the grid has no more points.
        """
        number = len(self)
        stuck = rejected_in_a_row >= RANDOM_AFTER_REJECTIONS
        given = self._problem.first if number == 0 else None
        space, attributes = self._problem.space, self._attributes(number, budget_flops)
        drawn = self._window.ask(
            number,
            self._when_stuck if stuck else self._sampler,
            self._memory.get_trials(deepcopy=False),
            attributes,
            space.encode(given or {}),
        )
        settings = space.decode(drawn)
        self._add(number, drawn, settings, attributes)
        return Proposal(number, settings)

    def restore(
        self, number: int, settings: Mapping[str, Value], budget_flops: int | None = None
    ) -> None:
        """Bring back, running, a proposal that our own tables know and the record may not.

        Proposals are restored in the order of their numbers.
        """
        if number == len(self):
            attributes = self._attributes(number, budget_flops)
            self._add(number, self._problem.space.encode(settings), settings, attributes)

    def _attributes(self, number: int, budget_flops: int | None) -> dict[str, Any]:
        return {NUMBER: number, BUDGET: budget_flops or self._problem.limits.budget_flops}

    def _add(
        self,
        number: int,
        drawn: dict[str, Any],
        settings: Mapping[str, Value],
        attributes: Mapping[str, Any],
    ) -> None:
        trial = create_trial(
            state=TrialState.RUNNING,
            params=drawn,
            distributions=self._problem.space.distributions(),
            user_attrs={"settings": dict(settings), **attributes},
        )
        trial.datetime_start = dt.datetime.now(dt.UTC).replace(tzinfo=None)
        self._memory.add_trial(trial)
        self._window.add(number, trial)
        if self._record is not None:
            self._record.unwritten.append(lambda study: study.add_trial(trial))

    def record(self) -> None:
        """Write to the record what happened since the last call.

        Raises:
            StudyError: the database cannot be written (locked, full disk).
        """
        if self._record is not None:
            self._record.write()

    def report(self, number: int, fraction: float, val_loss_nats: float) -> bool:
        """Record a validation loss at a fraction of the budget; True: the pruner would stop.

        Fractions are compared in thousandths, so runs of different lengths meet at equal shares
        of their budget, never at equal steps.
        """
        step = round(1000 * fraction)

        def enter(study: Study, number: int) -> None:
            storage = study._storage
            trial_id = storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
            storage.set_trial_intermediate_value(trial_id, step, val_loss_nats)

        self._change(number, enter)
        frozen = self._memory.get_trials(deepcopy=False)[number]
        return bool(self._memory.pruner.prune(self._memory, frozen))

    def complete(self, number: int, val_loss_nats: float) -> None:
        """The trial ended with this loss. Nothing happens if that is stored already."""
        self._tell(number, TrialState.COMPLETE, val_loss_nats)

    def fail(self, number: int) -> None:
        """The proposal was refused or its trial failed: samplers leave it out of account."""
        self._tell(number, TrialState.FAIL, None)

    def prune(self, number: int) -> None:
        """The trial was stopped early."""
        self._tell(number, TrialState.PRUNED, None)

    def _tell(self, number: int, state: TrialState, value: float | None) -> None:
        if self._memory.get_trials(deepcopy=False)[number].state != TrialState.RUNNING:
            return
        self._change(number, lambda study, n: study.tell(n, value, state=state))

    def _change(self, number: int, change: Callable[[Study, int], object]) -> None:
        """Make a change of a trial wherever the trial is."""
        change(self._memory, number)
        self._window.change(number, change)
        if self._record is not None:
            self._record.unwritten.append(lambda study: change(study, number))

    def open_proposals(self) -> list[Proposal]:
        """Proposals whose end is not stored, in order (after a kill)."""
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
