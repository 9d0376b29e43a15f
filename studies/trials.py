"""Where a search's runs come from: interrupted ones first, then admitted proposals."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from budgetsweep.constraint import Admitted, Limits, Rejected, admit
from budgetsweep.errors import Reason
from studies.database.run_kind import RunKind
from studies.database.store import Store, config_hash
from studies.database.tables import Rejection, Run, Study
from studies.execution.base import Executor
from studies.execution.dispatcher import recover
from studies.samplers.grid import SpaceExhausted
from studies.samplers.proposals import Proposal, Proposals
from studies.settings import SearchSettings
from studies.space.rungs import rung_budget
from studies.space.search_space import SearchSpace
from studies.trackers.base import Observer
from trainer.data.facts import DataFacts
from trainer.events import Point, RunResult, RunStatus

MAX_REJECTED_IN_A_ROW = 2_000
"""So many refusals in a row end a search: the space has hardly anything that fits."""


def reconcile(store: Store, study: Study, proposals: Proposals) -> None:
    """Tell Optuna what a killed dispatcher had stored but not passed on."""
    runs = {run.number: run for run in store.runs(study.id, kind=RunKind.TRIAL)}
    rejections = store.rejections(study.id)
    rejected = {rejection.number for rejection in rejections}
    rows: list[Run | Rejection] = [*runs.values(), *rejections]
    rungs, n_runs = study.settings.rungs, 0
    for row in sorted(rows, key=lambda row: row.number):
        # A refused one had the rung of the next run.
        budget = rung_budget(rungs.of_trial(n_runs), study.budget_flops)
        if isinstance(row, Run):
            budget, n_runs = row.budget_flops, n_runs + 1
        proposals.restore(row.number, row.params, budget)
    for proposal in proposals.open_proposals():
        run = runs.get(proposal.number)
        if proposal.number in rejected:
            proposals.fail(proposal.number)
        elif run is not None and run.status.is_finished:
            tell(proposals, run)


def tell(proposals: Proposals, run: Run) -> None:
    """Pass a finished trial's outcome to Optuna."""
    if run.status == RunStatus.COMPLETE and run.val_loss_nats is not None:
        proposals.complete(run.number, run.val_loss_nats)
    elif run.status == RunStatus.PRUNED:
        proposals.prune(run.number)
    else:
        proposals.fail(run.number)


@dataclass
class TrialSource:
    """Gives the dispatcher interrupted runs, then new proposals, admitted ones."""

    store: Store
    """Of the study, whose lease is held."""
    study: Study
    """Its data are fixed."""
    settings: SearchSettings
    space: SearchSpace
    data: DataFacts
    proposals: Proposals
    """Reconciled."""
    observer: Observer
    """Hears of refused proposals."""
    executor: Executor
    should_stop: Callable[[], bool]
    """Asked between proposals."""

    def __post_init__(self) -> None:
        """Find out where the study stands."""
        store, study = self.store, self.study
        self._base = study.settings.base
        self._started = time.monotonic()
        self.recovered = [
            run for run in recover(store, study, self.executor) if run.kind == RunKind.TRIAL
        ]
        trials = store.runs(study.id, kind=RunKind.TRIAL)
        known = {run.number for run in trials}
        known |= {rejection.number for rejection in store.rejections(study.id)}
        self._undecided = [p for p in self.proposals.open_proposals() if p.number not in known]
        self._hashes = store.config_hashes(study.id)
        self._n_started = sum(run.status.is_finished for run in trials)
        """Trials finished or in hand; recovered ones join when they are taken up."""
        self._best = store.best_run(study.id)
        self._rejected_in_a_row = 0
        self._ended: str | None = None
        self.limits = Limits(
            study.budget_flops, study.convention, self.executor.device(), self.data
        )

    def out_of_time(self) -> bool:
        """Whether `--hours` are over."""
        hours = self.settings.hours
        return hours is not None and time.monotonic() - self._started > 3600.0 * hours

    def reason_to_stop(self) -> str | None:
        """Why no further trial is started, in words; None: go on."""
        if self.out_of_time():
            return f"--hours {self.settings.hours:g} are over"
        if self.recovered:
            return None
        if self._n_started >= self.settings.trials:
            return f"all {self.settings.trials} trials are done"
        return self._ended

    def next_run(self) -> Run | None:
        """The next run to start; refused proposals are stored on the way."""
        if self.out_of_time():
            return None
        if self.recovered:
            self._n_started += 1
            return self.recovered.pop(0)
        while self.reason_to_stop() is None and not self.should_stop():
            self._ended = self._used_up()
            if self._ended is not None:
                return None
            try:
                proposal = (
                    self._undecided.pop(0)
                    if self._undecided
                    else self.proposals.propose(
                        rejected_in_a_row=self._rejected_in_a_row,
                        budget_flops=rung_budget(self._rung(), self.study.budget_flops),
                    )
                )
            except SpaceExhausted:
                self._ended = "every point of the grid has been tried"
                return None
            run = self._decide(proposal)
            if run is not None:
                return run
        return None

    def _rung(self) -> Fraction:
        """Of the next trial."""
        return self.settings.rungs.of_trial(self._n_started)

    def _used_up(self) -> str | None:
        """Why there is nothing left to try for the next trial; None: there is."""
        budget = rung_budget(self._rung(), self.study.budget_flops)
        return self.settings.backend.exhausted(self.space, budget, self._tried)

    def _tried(self, budget_flops: int) -> int:
        """Trials of a budget so far."""
        trials = self.store.runs(self.study.id, kind=RunKind.TRIAL)
        return sum(run.budget_flops == budget_flops for run in trials)

    def _decide(self, proposal: Proposal) -> Run | None:
        run_dir = self.settings.folder / f"trial-{proposal.number:05d}"
        data = self.space.run_data(proposal.settings, self._base)
        rung = self._rung()
        limits = dataclasses.replace(
            self.limits, budget_flops=rung_budget(rung, self.study.budget_flops)
        )
        answer = admit({**data, "output_dir": str(run_dir)}, limits)
        if isinstance(answer, Admitted):
            digest = config_hash(answer.config)
            if digest in self._hashes:
                answer = Rejected(Reason.DUPLICATE, "this configuration has been tried already")
            else:
                answer = self.settings.backend.refusal(answer) or answer
        if isinstance(answer, Rejected):
            self._reject(proposal, answer)
            return None
        limit = self.settings.total_flops
        if limit is not None:
            committed = self.store.committed_flops(
                self.study.id, self.limits.convention, kind=RunKind.TRIAL
            )
            if committed + answer.charge_flops > limit:
                self._ended = (
                    f"--total-flops {limit:.4g}: {committed:.4g} are spent or under way and the "
                    f"next trial would cost {answer.charge_flops:.4g}"
                )
                self._undecided.insert(0, proposal)
                return None
        self._rejected_in_a_row = 0
        self._hashes.add(digest)
        self._n_started += 1
        run_id = self.store.add_run(
            study_id=self.study.id,
            kind=RunKind.TRIAL,
            number=proposal.number,
            params=proposal.settings,
            config=answer.config,
            budget_flops=limits.budget_flops,
            data_checksum=self.data.data_checksum,
            val_checksum=self.data.val_checksum,
            epochs=answer.epochs,
            estimated_memory_bytes=answer.memory_bytes,
            output_dir=str(run_dir),
            scale=float(rung) if min(self.settings.rungs.multiples) < 1 else None,
        )
        return self.store.run(run_id)

    def _reject(self, proposal: Proposal, answer: Rejected) -> None:
        self.store.add_rejection(self.study.id, proposal.number, proposal.settings, answer)
        self.proposals.fail(proposal.number)
        self.observer.rejected(proposal.number, answer)
        self._rejected_in_a_row += 1
        size = self.space.size()
        if size is not None and len(self._hashes) >= size * len(self.settings.rungs.of_trials):
            self._ended = "every configuration of the space has been tried"
        elif self._rejected_in_a_row >= MAX_REJECTED_IN_A_ROW:
            self._ended = (
                f"{MAX_REJECTED_IN_A_ROW:,} proposals in a row were refused, the last one: "
                f"{answer.detail}; widen the space or raise the budget"
            )

    def workers_busy(self) -> None:
        """Bring Optuna's record up to date while the workers train."""
        self.proposals.record()

    def validated(self, run: Run, fraction: float, point: Point) -> bool:
        """Ask the pruner."""
        assert point.val_loss_nats is not None
        return self.proposals.report(run.number, fraction, point.val_loss_nats)

    def finished(self, run: Run, result: RunResult) -> None:
        """Tell Optuna, and keep on disk only the weights that are asked for."""
        del result  # it is in the run's row
        tell(self.proposals, run)
        keep = self.settings.keep
        if keep == "all" or run.status != RunStatus.COMPLETE:
            return
        losers = [run]
        if (
            keep == "best"
            and run.has_whole_budget
            and (
                self._best is None
                or self._best.val_loss_nats is None
                or (run.val_loss_nats is not None and run.val_loss_nats < self._best.val_loss_nats)
            )
        ):
            losers = [self._best] if self._best is not None else []
            self._best = run
        for loser in losers:
            if loser.output_dir is not None:
                (Path(loser.output_dir) / "model.pt").unlink(missing_ok=True)
