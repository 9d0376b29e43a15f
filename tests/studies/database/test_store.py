"""The only writer: studies, runs, points, rejections, ledger."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import asdict, replace
from typing import Any

import pytest

from budgetsweep.constraint import Rejected
from budgetsweep.errors import BudgetExceeded, ConfigError, Reason, StudyError
from studies.database import tables
from studies.database.ledger import Amount
from studies.database.store import IllegalChangeError, Store, config_hash
from studies.space.rungs import Rungs
from tests.support.tiny_studies import add_run, new_study, run_config, study_settings
from trainer.config import RunConfig
from trainer.data.facts import DataFacts
from trainer.events import Point, RunResult, RunStatus

# The run of `conftest.run_config`: V=257, D=16, P=8, L=1, S=8, 16 tokens per step, 12 steps.
N_PARAMS = 257 * 16 + 8 * 16 + 12 * 16**2 + 13 * 16 + 2 * 16
STEP = Amount(
    steps=1,
    tokens=16,
    nanogpt=16 * (6 * N_PARAMS + 12 * 16 * 8),
    matmul=16 * 6 * (257 * 16 + 12 * 16**2 + 2 * 16 * 8),
    mac=16 * 3 * (257 * 16 + 12 * 16**2 + 2 * 16 * 8),
)

PLAIN_HASH = "a0556983bd6661cb678c5463cea2fbf4be22f311753a2eab964e349be3c40d81"


def times(amount: Amount, n: int) -> Amount:
    return Amount(*(n * value for value in asdict(amount).values()))


def point(step: int, **changes: Any) -> Point:
    return replace(
        Point(step=step, tokens=16 * step, flops=10**19 * step, seconds=0.5 * step), **changes
    )


def done(status: RunStatus = RunStatus.COMPLETE, step: int = 12, **changes: Any) -> RunResult:
    result = RunResult(status=status, step=step, steps_executed=step, tokens=16 * step)
    return replace(result, **changes)


class TestStudies:
    def test_what_is_written_is_read(self, store: Store) -> None:
        study = new_study(
            store, "größe", budget_flops=10**25, seed=2**32 - 1, base={"a": [1, None]}
        )
        assert (study.name, study.budget_flops, study.seed) == ("größe", 10**25, 2**32 - 1)
        assert study.settings.base == {"a": [1, None]}
        assert study.settings.rungs == Rungs()
        assert abs(study.created_utc - dt.datetime.now(dt.UTC)) < dt.timedelta(seconds=30)
        assert study.created_utc.tzinfo is dt.UTC
        facts = DataFacts("demo", "d" * 64, "v" * 64, val_tokens=2**40, bytes_per_token=4.25)
        store.set_study_data(study.id, facts, study.settings)
        rungs = Rungs.parse("0.1,1")
        changed = study.settings.model_copy(update={"rungs": rungs, "for_scale": 2.5})
        store.update_settings(study.id, changed)
        again = store.study("größe")
        assert (again.val_tokens, again.bytes_per_token) == (2**40, 4.25)
        assert again.settings == changed

    def test_study_by_default(self, store: Store) -> None:
        assert store.find_study("a") is None
        with pytest.raises(StudyError, match="holds no study yet; run `budgetsweep search` first"):
            store.study()
        with pytest.raises(StudyError, match="holds no study yet"):
            store.study("a")
        new_study(store, "first")
        assert store.study().name == "first"
        new_study(store, "second")
        assert store.study(None).name == "second", "the newest"
        assert store.study_names() == ["first", "second"]
        with pytest.raises(StudyError, match="holds no study 'frist'; did you mean 'first'"):
            store.study("frist")
        with pytest.raises(StudyError, match="holds no study 'xyz'; known: first, second"):
            store.study("xyz")

    def test_a_name_is_taken_once(self, store: Store) -> None:
        new_study(store, "a", seed=1)
        with pytest.raises(StudyError, match="already holds a study 'a'; resume it"):
            new_study(store, "a", seed=2)
        assert store.study("a").seed == 1

    @pytest.mark.parametrize("name", ["", "  ", "x" * 201, "a\x00b", "a\nb", "\udc80"])
    def test_names_that_no_database_takes(self, store: Store, name: str) -> None:
        with pytest.raises(StudyError, match="expected 1 to 200 printable characters"):
            new_study(store, name)

    def test_a_study_that_is_not_there(self, store: Store) -> None:
        with pytest.raises(IllegalChangeError, match="no study 7"):
            store.update_settings(7, study_settings())
        with pytest.raises(IllegalChangeError, match="no study 7"):
            add_run(store, 7)


class TestRuns:
    def test_a_queued_run_has_its_facts(self, store: Store, study: tables.Study) -> None:
        config = run_config(seed=2**32 - 1)
        run = store.run(add_run(store, study.id, number=3, config=config, scale=2.5))
        assert (run.status, run.number, run.attempts, run.step) == ("queued", 3, 0, 0)
        assert RunConfig.model_validate(run.config) == config
        assert (run.seed, run.scale, run.epochs) == (2**32 - 1, 2.5, 0.5)
        assert (run.n_params, run.num_steps, run.tokens_per_step) == (N_PARAMS, 12, 16)
        planned = Amount(
            12, run.planned_tokens, run.planned_flops_nanogpt, run.planned_flops_matmul,
            run.planned_flops_mac,
        )  # fmt: skip
        assert planned == times(STEP, 12)
        assert run.config_hash == config_hash(config)
        assert set(run.versions) == {"python", "torch", "optuna", "numpy", "budgetsweep"}
        assert run.started_utc is None
        assert run.val_loss_nats is None
        assert store.ledger(study.id).planned == times(STEP, 12)
        assert store.ledger(study.id).spent == Amount()

    def test_a_complete_run_has_its_results(self, store: Store, study: tables.Study) -> None:
        run_id = add_run(store, study.id)
        assert store.start_attempt(run_id) == 1
        result = done(
            val_loss_nats=3.25, val_ppl=25.8, val_bits_per_byte=1.5, val_loss_stderr_nats=0.01,
            val_tokens=2**33, train_loss_nats=3.1, train_seconds=2.5, eval_seconds=0.5,
            peak_memory_bytes=2**34, device_name="x" * 300, precision="bf16", compiled=True,
        )  # fmt: skip
        store.finish_run(run_id, result)
        run = store.run(run_id)
        for name, value in asdict(result).items():
            if name not in ("tokens", "artefacts", "device_name"):
                assert getattr(run, name) == value, name
        assert run.device_name == "x" * 200
        assert run.started_utc is not None
        assert run.finished_utc is not None
        assert run.created_utc <= run.started_utc <= run.finished_utc
        assert store.ledger(study.id).spent == times(STEP, 12)
        assert store.ledger(study.id).recomputed == Amount()

    def test_failure_keeps_the_reason_and_no_invented_figure(
        self, store: Store, study: tables.Study
    ) -> None:
        run_id = add_run(store, study.id)
        store.start_attempt(run_id)
        reason = "training loss became nan at step 5\x00\udc80"
        store.finish_run(
            run_id,
            done(
                RunStatus.FAILED, 4, reason=reason, train_loss_nats=math.nan, val_loss_nats=math.inf
            ),
        )
        run = store.run(run_id)
        assert run.reason == "training loss became nan at step 5?"
        assert (run.status, run.train_loss_nats, run.val_loss_nats) == ("failed", None, None)
        assert store.ledger(study.id).spent == times(STEP, 4)

    def test_numbers_are_unique_a_kind(self, store: Store, study: tables.Study) -> None:
        trial = add_run(store, study.id, number=0)
        add_run(store, study.id, number=0, kind="promotion", parent_run_id=trial)
        with pytest.raises(IllegalChangeError, match="trial 0 cannot be entered"):
            add_run(store, study.id, number=0)
        with pytest.raises(IllegalChangeError, match="cannot be entered"):
            add_run(store, study.id, number=1, parent_run_id=999)
        assert store.ledger(study.id).planned == times(STEP, 24)

    def test_a_run_beyond_its_budget_never_enters(self, store: Store, study: tables.Study) -> None:
        cost = 12 * STEP.nanogpt
        with pytest.raises(BudgetExceeded):
            add_run(store, study.id, budget_flops=cost - 1)
        add_run(store, study.id, budget_flops=cost)
        mac = run_config(convention="mac")
        with pytest.raises(BudgetExceeded):
            add_run(store, study.id, number=1, config=mac, budget_flops=12 * STEP.mac - 1)
        add_run(store, study.id, number=1, config=mac, budget_flops=12 * STEP.mac)
        with pytest.raises(ConfigError):
            add_run(store, study.id, number=2, config=run_config(num_training_steps="fill"))
        assert len(store.runs(study.id)) == 2

    def test_counts_beyond_64_bits_stay_exact(self, store: Store, study: tables.Study) -> None:
        steps = 2**40 - 1
        config = run_config(num_training_steps=steps, batch_size=2**40, seq_len=7)
        run_id = add_run(store, study.id, config=config, budget_flops=10**30)
        store.start_attempt(run_id)
        store.interrupt_run(run_id, step=steps - 1, steps_executed=steps)
        scale = 2**40 * 7
        per_step = scale * (6 * N_PARAMS + 12 * 16 * 8)
        totals = store.ledger(study.id)
        assert totals.spent.nanogpt == steps * per_step
        assert totals.recomputed.nanogpt == per_step
        assert totals.spent.tokens == steps * scale
        assert totals.spent.matmul == steps * scale * 6 * (257 * 16 + 12 * 256 + 2 * 16 * 7)
        assert totals.spent.flops("mac") * 2 == totals.spent.flops("matmul")

    def test_selection_and_order(self, store: Store, study: tables.Study) -> None:
        ids = {n: add_run(store, study.id, number=n) for n in (5, 1, 3)}
        promotion = add_run(store, study.id, number=0, kind="promotion")
        store.start_attempt(ids[3])
        assert [r.number for r in store.runs(study.id, kind="trial")] == [1, 3, 5]
        assert [r.id for r in store.runs(study.id, kind="promotion")] == [promotion]
        assert [r.id for r in store.runs(study.id, statuses=["running"])] == [ids[3]]
        assert [r.number for r in store.runs(study.id)] == [0, 1, 3, 5]
        assert store.runs(study.id + 1) == []
        with pytest.raises(IllegalChangeError, match="no run 999"):
            store.run(999)

    def test_best_run(self, store: Store, study: tables.Study) -> None:
        assert store.best_run(study.id) is None
        ended: list[tuple[str, float | None]] = [
            ("complete", None), ("complete", math.nan), ("complete", math.inf), ("pruned", 0.5),
            ("failed", 0.1), ("complete", 3.0), ("complete", 2.0), ("complete", 2.0),
        ]  # fmt: skip
        for number, (status, loss) in enumerate(ended):
            run_id = add_run(store, study.id, number=number)
            store.start_attempt(run_id)
            store.finish_run(run_id, done(RunStatus(status), val_loss_nats=loss))
        best = store.best_run(study.id)
        assert best is not None
        assert best.number == 6


class TestPoints:
    def test_a_resumed_run_reports_again(self, store: Store, study: tables.Study) -> None:
        run_id = add_run(store, study.id)
        with pytest.raises(IllegalChangeError, match="queued"):
            store.add_points(run_id, [point(1)])
        store.start_attempt(run_id)
        store.add_points(run_id, [])
        store.add_points(run_id, [point(2, train_loss_nats=5.0), point(4, train_loss_nats=4.0)])
        store.add_points(run_id, [point(4, val_loss_nats=4.5, grad_norm=math.inf)])
        store.add_points(run_id, [point(6, train_loss_nats=3.0, lr=1e-3)])
        store.interrupt_run(run_id, step=4, steps_executed=7)
        store.start_attempt(run_id)
        again = point(6, train_loss_nats=2.9, seconds=9.0)
        store.add_points(run_id, [again, point(8, train_loss_nats=2.5), point(10)])
        got = {p.step: (p.train_loss_nats, p.val_loss_nats) for p in store.points(run_id)}
        assert got == {
            2: (5.0, None),
            4: (4.0, 4.5),
            6: (2.9, None),
            8: (2.5, None),
            10: (None, None),
        }
        six = store.points(run_id)[2]
        assert (six.seconds, six.lr, six.flops, six.tokens) == (9.0, 1e-3, 6 * 10**19, 96)
        assert store.points(run_id)[1].grad_norm is None
        store.finish_run(run_id, done(RunStatus.PRUNED, 9, steps_executed=11))
        assert [p.step for p in store.points(run_id)] == [2, 4, 6, 8]

    def test_many_points_at_once_and_one_step_twice(
        self, store: Store, study: tables.Study
    ) -> None:
        run_id = add_run(store, study.id)
        store.start_attempt(run_id)
        points = [point(k, lr=k / 2) for k in range(1, 1203)]
        store.add_points(run_id, [point(700, grad_norm=1.0), *points, point(1202, lr=7.0)])
        got = store.points(run_id)
        assert [p.step for p in got] == list(range(1, 1203))
        assert (got[699].grad_norm, got[699].lr, got[-1].lr) == (1.0, 350.0, 7.0)


class TestRejections:
    def test_each_is_entered_once(self, store: Store, study: tables.Study) -> None:
        def reject(number: int, reason: Reason, **changes: Any) -> None:
            rejected = Rejected(
                reason, "too large", excess=1.5, n_params=10**20, tokens=2**70, charge_flops=10**30
            )
            params = {"n_embd": 8}
            store.add_rejection(study.id, number, params, replace(rejected, **changes))

        reject(2, Reason.OUT_OF_MEMORY)
        reject(
            0, Reason.OVER_BUDGET, excess=math.inf, n_params=None, tokens=None, charge_flops=None
        )
        reject(2, Reason.DUPLICATE, detail="again, after a kill")
        reject(3, Reason.OUT_OF_MEMORY)
        reasons = [rejection.reason for rejection in store.rejections(study.id)]
        assert reasons == [Reason.OVER_BUDGET, Reason.OUT_OF_MEMORY, Reason.OUT_OF_MEMORY]
        first, second, _ = store.rejections(study.id)
        assert (first.number, first.excess, first.tokens) == (0, None, None)
        assert (second.number, second.detail, second.tokens) == (2, "too large", 2**70)
        assert (second.n_params, second.charge_flops) == (10**20, 10**30)


class TestConfigHash:
    def test_what_does_not_train_differently_is_left_out(self) -> None:
        plain = config_hash(run_config())
        assert plain == PLAIN_HASH, "studies on disk would forget what they have tried"
        for same in (
            {"output_dir": "elsewhere"},
            {"device": "cuda:1"},
            {"seed": 9},
            {"num_reports": 7},
            {"checkpoint_seconds": 1.0},
            {"compile": "on"},
            {"cuda_graph": "off"},
            {"budget_flops": 10**18, "convention": "mac"},
            {"warmup_fraction": 0.0},
            {"min_lr": 1e-4},
            {"min_lr_ratio": 0.1},
        ):
            assert config_hash(run_config(**same)) == plain, same
        assert config_hash(run_config(num_warmup_steps=3)) == config_hash(
            run_config(warmup_fraction=0.25)
        )

    def test_what_trains_differently_counts(self) -> None:
        changes: list[dict[str, Any]] = [
            {}, {"batch_size": 3}, {"seq_len": 4}, {"max_lr": 2e-3}, {"min_lr_ratio": 0.2},
            {"num_training_steps": 11}, {"num_warmup_steps": 1}, {"weight_decay": 0.0},
            {"grad_clip": None}, {"grad_clip": 2.0}, {"grad_accumulation_steps": 2},
            {"beta2": 0.99}, {"autocast": "off"}, {"data": {"source": "demo"}},
            {"model_config": {"n_embd": 16, "n_head": 4, "n_positions": 8, "n_layer": 1}},
        ]  # fmt: skip
        hashes = {config_hash(run_config(**change)) for change in changes}
        assert len(hashes) == len(changes)

    def test_an_open_configuration_has_none(self) -> None:
        """Its budget would decide what it trains, and two budgets can afford the same."""
        with pytest.raises(ConfigError):
            config_hash(run_config(num_training_steps="fill", budget_flops=10**10))

    def test_hashes_of_a_study(self, store: Store, study: tables.Study) -> None:
        configs = [run_config(), run_config(seed=5), run_config(max_lr=0.5)]
        for number, config in enumerate(configs):
            add_run(store, study.id, number=number, config=config)
        assert store.config_hashes(study.id) == {config_hash(c) for c in configs}
        assert len(store.config_hashes(study.id)) == 2
