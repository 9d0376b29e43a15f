"""A search over the grid that others ran: losses are those of a table of finished runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from budgetsweep.constraint import Admitted, Rejected
from budgetsweep.errors import ConfigError, Reason
from studies.database.tables import Run, Study
from studies.execution.base import SearchRequest
from studies.scaling.prediction import StudyFit
from studies.simulation.backend import Untrained
from studies.simulation.regret import regrets
from studies.simulation.run_table import TOKENIZER, RunTable
from studies.space.defaults import TOKENS_PER_PARAM
from studies.space.rungs import Rungs
from studies.space.search_space import SearchSpace
from trainer.config import RunConfig
from trainer.driver import RunEvents
from trainer.events import Point, RunResult, RunStatus


class Replay(Untrained):
    """Losses of a table of finished runs. How these were tuned is not known: taken as well."""

    sizes_only = True

    def __init__(self, path: Path) -> None:
        """Read the table.

        Raises:
            DataError: it cannot be read, or has runs of several groups.
        """
        self.table = RunTable(path)
        digest = self.table.digest
        self.name, self.checksum = f"table:{digest[:16]}", f"replayed:{digest[:48]}"
        self.description, self.location = self.table.description, str(self.table.path)
        self.notes = self.table.table.notes
        self.source_name = f"replayed-{self.table.path.name}"

    def refusal(self, admitted: Admitted) -> Rejected | None:
        """An admitted configuration is refused where no run of the table is near it."""
        config = admitted.config
        if self.table.place(config) is not None:
            return None
        return Rejected(
            Reason.NO_RUN, self.table.absence(config), n_params=config.n_params,
            tokens=config.total_tokens, charge_flops=admitted.charge_flops,
        )  # fmt: skip

    def check(self, asked: SearchRequest) -> None:
        """Refuse a search that the table has no runs for, and settings that it does not know.

        Raises:
            ConfigError: the budget or a rung is no budget of the table, or has too few sizes.
        """
        refused = {
            "--trials-per-gpu": (asked.trials_per_gpu is not None, "nothing is trained on a GPU"),
            "--prune": (asked.pruning, "a table has one loss a run, no curve to prune by"),
            "--space": (asked.space is not None, "the space is the sizes of the table"),
            "--set": (bool(asked.overrides), "the table knows sizes and budgets, no other setting"),
            "--convention": (
                asked.convention != "nanogpt",
                "a table counts 6·N·D, as nanogpt does",
            ),
            "--sampler grid": (
                asked.sampler == "grid" and len(asked.rungs.of_trials) > 1,
                "it tries each size once, on one rung only",
            ),
        }
        for name, (given, why) in refused.items():
            if given:
                raise ConfigError(f"--replay: leave out {name}: {why}")
        self.table.check(asked.budget_flops, asked.rungs)

    def own_space(self, budget_flops: int, rungs: Rungs) -> SearchSpace:
        """Widths that stand for the sizes of the budgets of a search."""
        return self.table.space(budget_flops, rungs)

    def first_proposal(self, space: SearchSpace, budget_flops: int) -> dict[str, Any]:
        """The size that has 14 tokens per parameter, as in other searches."""
        wanted = math.sqrt(budget_flops / (6.0 * TOKENS_PER_PARAM))
        there = self.table.widths(space, budget_flops)
        return {"n_embd": min(there, key=lambda width: abs(math.log(there[width] / wanted)))}

    def exhausted(
        self, space: SearchSpace, budget_flops: int, tried: Callable[[int], int]
    ) -> str | None:
        """Each run of a budget is replayed once."""
        there = len(self.table.widths(space, budget_flops))
        if tried(budget_flops) < there:
            return None
        return f"all {there} runs of the table at {budget_flops:.4g} FLOPs have been replayed"

    def check_promotion(self, overrides: Sequence[str]) -> None:
        """The table knows no settings that could be changed."""
        if overrides:
            raise ConfigError(
                "a replayed study: the table knows sizes and budgets alone; leave out --set"
            )

    def regret(self, study: Study, fit: StudyFit, best: Run | None) -> str | None:
        """What both answers cost by the table, in one sentence."""
        found = regrets(study, fit, best, self.table)
        return None if found is None else found.sentence

    def run_settings(self) -> dict[str, Any]:
        """One point a run, at its end."""
        return {"tokenizer_encoding": TOKENIZER, "num_reports": 1, "num_evals": 1}

    def open_run(self, config: RunConfig) -> RunEvents:
        """What the run of the table that stands for this one came to: one point, at its end.

        Raises:
            ConfigError: no run of the table is near.
        """
        place = self.table.place(config)
        if place is None:
            raise ConfigError(self.table.absence(config))
        loss, steps, tokens = place.run.loss_nats, config.steps, config.total_tokens
        flops = steps * config.flops_per_step(config.convention)
        yield Point(step=steps, tokens=tokens, flops=flops, seconds=0.0, val_loss_nats=loss)
        return RunResult(
            status=RunStatus.COMPLETE,
            step=steps,
            steps_executed=steps,
            tokens=tokens,
            reason=place.sentence,
            val_loss_nats=loss,
            val_ppl=math.exp(loss),
            val_loss_stderr_nats=place.run.stderr_nats or None,
            device_name="replayed",
        )
