"""The law of a study: which parameters are counted, how two laws are joined, what is doubted."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from studies.database.store import Store
from studies.database.tables import Study
from studies.scaling.covariates import COVARIATES, fit_covariates
from studies.scaling.fitted_runs import CHANCE_SD, FittedRuns, near_chance_nats
from studies.scaling.study_fit import Z_LEVEL, StudyLaw, fit_runs, size_of
from tests.support.lawful_runs import BUDGET, enter, fill_study, lawful_loss, trial_config


@pytest.mark.parametrize("counts", ["all", "blocks"])
def test_the_count_that_the_losses_follow_is_found(
    store: Store, study: Study, counts: Literal["all", "blocks"]
) -> None:
    shapes = itertools.product((64, 128, 256), (1, 4, 12), (BUDGET // 10, BUDGET, 10 * BUDGET))
    for number, (width, n_layer, budget) in enumerate(shapes):
        config = trial_config(width, budget, n_layer)
        enter(store, study, number, config, loss_nats=lawful_loss(config, counts=counts))
    found = fit_runs(FittedRuns.of(store.runs(study.id)))
    assert found.main.counts == {"all": "charged", "blocks": "blocks"}[counts]
    assert found.main.weight > 0.9
    assert math.fsum(law.weight for law in found.laws) == pytest.approx(1.0)
    large = trial_config(384, 100 * BUDGET)
    told = found.predict(large, FittedRuns())
    assert told.low_nats < lawful_loss(large, counts=counts) < told.high_nats


def test_what_two_laws_disagree_about_widens_the_interval(store: Store, study: Study) -> None:
    points = FittedRuns.of(fill_study(store, study, 15))
    found = fit_runs(points)
    halves = StudyLaw(tuple(dataclasses.replace(law, weight=0.5) for law in found.laws))
    config = trial_config(512, 100 * BUDGET)
    one, other = (law.predict(config, FittedRuns()) for law in halves.laws)
    told = halves.predict(config, FittedRuns())
    middle = (one.loss_nats + other.loss_nats) / 2
    assert told.loss_nats == pytest.approx(middle)
    apart = Z_LEVEL * abs(one.loss_nats - other.loss_nats) / 2
    mean_square = math.fsum((p.loss_nats - p.low_nats) ** 2 for p in (one, other)) / 2
    assert told.loss_nats - told.low_nats == pytest.approx(math.hypot(apart, mean_square**0.5))
    assert apart > 0.001
    alone = StudyLaw((dataclasses.replace(found.main, weight=1.0),))
    assert alone.predict(config, FittedRuns()) == found.main.predict(config, FittedRuns())


def test_differences_of_two_runs_are_drawn_from_both_laws(store: Store, study: Study) -> None:
    found = fit_runs(FittedRuns.of(fill_study(store, study, 15)))
    halves = StudyLaw(tuple(dataclasses.replace(law, weight=0.5) for law in found.laws))
    one, other = trial_config(64, 100 * BUDGET), trial_config(512, 100 * BUDGET)
    drawn = halves.sample_differences(one, other, np.random.default_rng(0), 400)
    assert drawn.shape == (400,)
    assert drawn.mean() == pytest.approx(lawful_loss(one) - lawful_loss(other), abs=0.3)


def test_sizes_of_a_configuration() -> None:
    config = trial_config(64, BUDGET)
    whole = config.with_changes(head_samples=1024)
    embeddings = 64 * (config.model.n_vocab + 128)
    assert size_of(config, "charged") == config.n_params
    assert size_of(whole, "charged") == config.n_params - 64 * (config.model.n_vocab - 1025)
    assert size_of(config, "blocks") == size_of(whole, "blocks") == config.n_params - embeddings


@given(st.floats(0.1, 20.0), st.sampled_from((257, 50257)))
def test_only_losses_near_guessing_are_doubted(loss: float, n_vocab: int) -> None:
    chance = math.log(n_vocab)
    doubt = near_chance_nats(loss, n_vocab)
    if loss <= 0.65 * chance:
        assert doubt == 0.0
    else:
        assert doubt > 0.0
        assert near_chance_nats(1.01 * loss, n_vocab) > doubt
    assert near_chance_nats(chance, n_vocab) == pytest.approx(CHANCE_SD * chance)


def test_runs_that_know_nothing_do_not_bend_the_law(store: Store, study: Study) -> None:
    fill_study(store, study, 24)
    config = trial_config(384, 30 * BUDGET)
    before = fit_runs(FittedRuns.of(store.runs(study.id))).predict(config, FittedRuns())
    for number in range(6):  # the law would have them far above ln V
        lost = trial_config(512, BUDGET // 50, max_lr=(3 + number) * 1e-3)
        assert lawful_loss(lost) > 1.3 * math.log(50257)
        enter(store, study, 100 + number, lost, loss_nats=0.99 * math.log(50257))
    after = fit_runs(FittedRuns.of(store.runs(study.id))).predict(config, FittedRuns())
    assert after.loss_nats == pytest.approx(before.loss_nats, rel=0.01)


def test_a_setting_beyond_those_tried_has_the_effect_of_the_last_of_them() -> None:
    configs = [
        trial_config(64, BUDGET // 10, weight_decay=decay, beta2=beta2)
        for decay in (0.0, 0.05, 0.1)
        for beta2 in (0.95, 0.99)
    ]
    losses = np.array([0.5 * config.weight_decay for config in configs])
    effects = fit_covariates(configs, losses - losses.mean(), np.full(len(configs), 1e-3))
    at = {w: effects.of(trial_config(64, BUDGET // 10, weight_decay=w))[0] for w in (0.1, 0.4)}
    assert at[0.1] == pytest.approx(0.025, abs=0.003)
    assert at[0.4] == at[0.1]
    assert set(effects.names) <= COVARIATES.keys()
