"""Cooldown branches of a search's trials: several budgets from one run (`search --trunks`).

Every trial is a trunk, trained with the whole budget. It keeps a checkpoint for each rung below 1,
where the cooldown of a run of that share of its steps would begin. Once the trial is complete, each
of these runs is trained from there: what is new of it, its cooldown, is all that goes on the
ledger. A branch whose checkpoint is gone before it is entered is trained from scratch, if
`--total-flops` allows that.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

from budgetsweep.config import parse
from budgetsweep.constraint import Admitted, Limits, admit, charge_per_step
from studies.database.store import Store
from studies.database.tables import FINISHED_STATUSES, Run, Study
from studies.settings import SearchSettings
from studies.space.rungs import rung_budget
from studies.trackers.base import Observer
from trainer.branches import (
    WHOLE,
    Lineage,
    branch_config,
    branch_start,
    kept_path,
    remove_kept,
)
from trainer.checkpoints.checkpoint import is_whole
from trainer.config import RunConfig


class Branches:
    """Gives the branches of complete trials, and says what trunks keep for them."""

    def __init__(
        self,
        store: Store,
        study: Study,
        settings: SearchSettings,
        limits: Limits,
        observer: Observer,
    ) -> None:
        """Find out which branches are missing; remove checkpoints that none needs any more.

        Args:
            store: the study's database; its lease is held.
            study: its row.
            settings: the rungs, and what may be spent.
            limits: what a trial must fit into.
            observer: hears of branches that are not trained as planned.
        """
        self._store, self._study, self._settings = store, study, settings
        self._limits, self._observer = limits, observer
        self.refusal: str | None = None
        """Why a branch was not trained for want of FLOPs, in words."""
        self._waiting: deque[tuple[Run, Fraction]] = deque()
        self._due: dict[int, dict[Fraction, int]] = {}
        """By trial, the branches that are not entered yet, and the FLOPs that they will cost."""
        self._open: dict[int, set[int]] = {}
        """By trial, its branches that are entered and not finished."""
        self._folders: dict[int, Path] = {}
        self._numbers = 0
        if settings.rungs.of_branches:
            self._read()

    def _read(self) -> None:
        entered: dict[int, set[float]] = {}
        for run in self._store.runs(self._study.id, kind="branch"):
            assert run.parent_run_id is not None
            entered.setdefault(run.parent_run_id, set()).add(run.scale or 0.0)
            self._numbers = max(self._numbers, run.number + 1)
            if run.status not in FINISHED_STATUSES:
                self._open.setdefault(run.parent_run_id, set()).add(run.id)
        for trial in self._store.runs(self._study.id, kind="trial"):
            self.started(trial, without=entered.get(trial.id, set()))
            if trial.status in FINISHED_STATUSES:
                self.trunk_finished(trial)

    @property
    def is_waiting(self) -> bool:
        """Whether a branch can be trained now."""
        return bool(self._waiting)

    @property
    def reserved_flops(self) -> int:
        """What the branches will cost that trunks under way still owe, in the study's convention.

        Those that are entered are on the ledger.
        """
        return sum(sum(costs.values()) for costs in self._due.values())

    def cost(self, trunk: RunConfig) -> int:
        """FLOPs of all branches of a trunk, in the study's convention."""
        return sum(self._costs(trunk).values())

    def started(self, trial: Run, *, without: set[float] | None = None) -> None:
        """A trial was entered: its branches are to come, but for those on the rungs `without`."""
        if not self._settings.rungs.of_branches:
            return
        self._folders[trial.id] = Path(str(trial.output_dir))
        if without is not None and len(without) == len(self._settings.rungs.of_branches):
            return
        trunk = parse(RunConfig, trial.config, f"trial {trial.number}")
        costs = self._costs(trunk)
        if without is None:
            for rung in self._settings.rungs.of_branches:
                if rung not in costs:
                    self._observer.message(
                        f"trial {trial.number} has no branch at {float(rung):g} times the budget: "
                        f"{math.floor(rung * trunk.steps):,} steps are too few for a warm-up of "
                        f"{trunk.warmup_steps:,}, a constant rate and a cooldown"
                    )
        without = without or set()
        self._due[trial.id] = {r: cost for r, cost in costs.items() if float(r) not in without}

    def trunk_finished(self, trial: Run) -> None:
        """A trial has ended: its branches can be trained, or never will be."""
        if trial.status == "complete":
            self._waiting.extend((trial, rung) for rung in self._due.get(trial.id, ()))
        else:
            self._due.pop(trial.id, None)
        self._tidy(trial.id)

    def next_run(self) -> Run | None:
        """Enter the next branch; None: there is none now."""
        while self._waiting:
            trial, rung = self._waiting.popleft()
            run = self._enter(trial, rung)
            if run is not None:
                return run
        return None

    def finished(self, branch: Run) -> None:
        """A branch has ended: the checkpoints of its trunk go with the last one."""
        assert branch.parent_run_id is not None
        self._open.get(branch.parent_run_id, set()).discard(branch.id)
        self._tidy(branch.parent_run_id)

    def lineage(self, run: Run) -> Lineage:
        """What a run keeps for branches, and what it begins from."""
        if run.kind == "branch" and run.inherited_steps:
            assert run.parent_run_id is not None
            kept = kept_path(self._folders[run.parent_run_id], run.inherited_steps)
            return Lineage(begins_from=kept, inherited_steps=run.inherited_steps)
        if run.kind != "trial" or not self._due.get(run.id):
            return WHOLE
        configs = self._configs(parse(RunConfig, run.config, f"trial {run.number}"))
        starts = [branch_start(configs[rung]) for rung in self._due[run.id]]
        return Lineage(frozenset(step for step in starts if step is not None))

    def _configs(self, trunk: RunConfig) -> Mapping[Fraction, RunConfig]:
        found = {
            rung: branch_config(trunk, rung, rung_budget(rung, self._study.budget_flops))
            for rung in self._settings.rungs.of_branches
        }
        return {rung: config for rung, config in found.items() if config is not None}

    def _costs(self, trunk: RunConfig) -> dict[Fraction, int]:
        per_step = charge_per_step(trunk, self._limits.convention)
        return {
            rung: (config.steps - (branch_start(config) or 0)) * per_step
            for rung, config in self._configs(trunk).items()
        }

    def _enter(self, trial: Run, rung: Fraction) -> Run | None:
        config = self._configs(parse(RunConfig, trial.config, f"trial {trial.number}"))[rung]
        inherited = branch_start(config) or 0
        name = f"trial {trial.number}: the branch at {float(rung):g} times the budget"
        if self._settings.simulate is None:
            kept = kept_path(self._folders[trial.id], inherited)
            if not is_whole(kept):
                self._observer.message(
                    f"{name} has lost the checkpoint to begin from; it is trained from scratch"
                )
                inherited = 0
        owed = self._due[trial.id].pop(rung)
        charge = (config.steps - inherited) * charge_per_step(config, self._limits.convention)
        # What was not planned must not take what other trunks' branches will cost.
        if not self._is_paid(name, charge, 0 if inherited else self.reserved_flops):
            self._due[trial.id][rung] = owed  # its checkpoint stays for a larger limit
            return None
        budget = rung_budget(rung, self._study.budget_flops)
        limits = dataclasses.replace(self._limits, budget_flops=budget)
        folder = self._settings.folder / f"branch-{self._numbers:05d}"
        answer = admit(config.with_changes(output_dir=str(folder)), limits)
        assert isinstance(answer, Admitted)  # less of everything than its trunk
        run_id = self._store.add_run(
            study_id=self._study.id,
            kind="branch",
            number=self._numbers,
            params=trial.params,
            config=answer.config,
            budget_flops=budget,
            data_checksum=trial.data_checksum,
            val_checksum=trial.val_checksum,
            epochs=answer.epochs,
            estimated_memory_bytes=answer.memory_bytes,
            output_dir=str(folder),
            parent_run_id=trial.id,
            scale=float(rung),
            inherited_steps=inherited,
        )
        self._numbers += 1
        self._open.setdefault(trial.id, set()).add(run_id)
        return self._store.run(run_id)

    def _is_paid(self, name: str, charge: int, reserved: int) -> bool:
        limit = self._settings.total_flops
        if limit is None:
            return True
        committed = self._store.committed_flops(
            self._study.id, self._limits.convention, ("trial", "branch")
        )
        if committed + reserved + charge <= limit:
            return True
        self.refusal = (
            f"--total-flops {limit:.4g}: {committed:.4g} are spent or under way and {name} would "
            f"cost {charge:.4g}"
        )
        return False

    def _tidy(self, trial_id: int) -> None:
        """Remove what a trunk has kept, once no branch will begin from it."""
        if self._due.get(trial_id) or self._open.get(trial_id):
            return
        self._due.pop(trial_id, None)
        if self._settings.simulate is None and trial_id in self._folders:
            remove_kept(self._folders[trial_id])
