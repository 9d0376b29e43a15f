"""The scaling fit: what it recovers, how sure it is, what it refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetsweep.errors import FitRefused
from studies.scaling.fit import fit
from studies.scaling.fit_data import FitData, FitPoint, budgets_of
from studies.scaling.held_out_score import score
from studies.scaling.law import PUBLISHED, ScalingLaw, steplaw_batch_tokens, steplaw_lr
from studies.scaling.likelihood import best_ln_batch, log_loss
from studies.scaling.priors import Priors
from studies.scaling.result import ScalingFit
from tests.support.scaling_worlds import LAW, SIZES, grid, study

NOISE = 0.004


@pytest.fixture(scope="module")
def noisy() -> ScalingFit:
    return fit(grid(noise=NOISE))


@pytest.fixture(scope="module")
def tried() -> ScalingFit:
    return fit(study(LAW, seed=3, rate_shift=2.0))


def test_the_model_is_the_documented_formula(tried: ScalingFit) -> None:
    size, tokens, rate, batch = 5e6, 4e7, 2e-3, 3e4
    n, d = math.log(size) - tried.centre.ln_n, math.log(tokens) - tried.centre.ln_tokens
    level, by_n, by_tokens, by_batch = tried.theta[7:11]
    over = math.log(batch / steplaw_batch_tokens(tokens))
    middle = steplaw_lr(math.exp(tried.centre.ln_n), math.exp(tried.centre.ln_tokens))
    best = math.log(middle) + level + by_n * n + by_tokens * d + by_batch * over
    best_over = tried.theta[12] + tried.theta[13] * d
    expected = (
        tried.law.loss(size, tokens)
        + tried.k_lr_nats * (math.log(rate) - best) ** 2
        + tried.k_batch_nats * (over - best_over) ** 2
    )
    told = tried.predict(size, tokens, max_lr=rate, batch_tokens=batch)
    assert told.loss_nats == pytest.approx(expected, rel=1e-9)
    assert tried.tuned_lr(size, tokens, batch) == pytest.approx(math.exp(best), rel=1e-9)
    # At their optimum rate and batch cost nothing.
    batch = steplaw_batch_tokens(tokens) * math.exp(best_over)
    rate = tried.tuned_lr(size, tokens)
    tuned = tried.predict(size, tokens, max_lr=rate, batch_tokens=batch)
    assert tuned.loss_nats == pytest.approx(tried.law.loss(size, tokens), rel=1e-9)


@pytest.mark.parametrize("law", [LAW, *PUBLISHED.values()])
def test_runs_of_a_law_give_it_back(law: ScalingLaw) -> None:
    found = fit(grid(law))
    for one in grid(law, budgets=(2e16,)):
        assert found.law.loss(one.n_params, one.tokens) == pytest.approx(one.loss_nats, rel=0.003)
    size = law.best_params(1e18)
    assert found.best_params(1e18) == pytest.approx(size, rel=0.15)
    told = found.predict(size, 1e18 / 6 / size)
    assert told.loss_nats == pytest.approx(law.loss(size, 1e18 / 6 / size), rel=0.01)


def test_what_a_fit_records(noisy: ScalingFit) -> None:
    assert (noisy.n_points, noisy.n_shapes, noisy.n_budgets) == (18, 18, 3)
    assert noisy.flops_range == pytest.approx((1e16, 1e17))
    assert not noisy.knows_lr
    far = noisy.predict(1e7, 1e10).extrapolation
    assert far.flops_ratio == pytest.approx(6.0)
    assert far.tokens_outside
    assert not far.n_params_outside


def test_the_scatter_is_estimated() -> None:
    calm, wild = (fit(grid(budgets=np.geomspace(1e15, 1e17, 8), noise=s)) for s in (0.001, 0.03))
    assert calm.noise < 0.005
    assert 0.02 < wild.noise < 0.04


@settings(max_examples=8)
@given(factor=st.floats(0.01, 100.0), seed=st.integers(0, 3))
def test_units_of_size_do_not_matter(factor: float, seed: int) -> None:
    """N counted in other units (another convention) gives the same losses."""
    runs = grid(noise=NOISE, seed=seed)
    # Tokens follow, so that tokens per parameter stay.
    scaled = [
        dataclasses.replace(r, n_params=r.n_params * factor, tokens=r.tokens * factor) for r in runs
    ]
    one, other = fit(runs), fit(scaled)
    told, same = one.predict(5e7, 2e9), other.predict(5e7 * factor, 2e9 * factor)
    assert same.loss_nats == pytest.approx(told.loss_nats, rel=1e-3)
    assert same.high_nats == pytest.approx(told.high_nats, rel=2e-3)


def test_the_order_of_runs_does_not_matter(noisy: ScalingFit) -> None:
    runs = grid(noise=NOISE)
    other = fit(runs[::-1])
    assert other.law.loss(5e7, 2e9) == pytest.approx(noisy.law.loss(5e7, 2e9), rel=1e-4)


def test_bad_runs_do_not_bend_the_law() -> None:
    """Three of 48 runs diverged a little; the law moves by less than 0.8 %, not 4."""
    runs = grid(budgets=np.geomspace(1e15, 1e17, 8), noise=NOISE)
    clean = fit(runs)
    for i in (20, 28, 39):
        runs[i] = dataclasses.replace(runs[i], loss_nats=1.4 * runs[i].loss_nats)
    bent = fit(runs)
    sizes, tokens = (np.array([getattr(r, f) for r in runs]) for f in ("n_params", "tokens"))
    moved = np.abs(np.log(bent.losses(sizes, tokens) / clean.losses(sizes, tokens)))
    assert moved.max() < 0.008


def test_a_run_counts_by_its_standard_error(noisy: ScalingFit) -> None:
    runs = grid(noise=NOISE)
    off = [
        dataclasses.replace(r, loss_nats=1.03 * r.loss_nats, stderr_nats=s)
        for r in runs[:6]
        for s in (0.0, 0.5)
    ]
    trusted = fit([*off[::2], *runs[6:]])
    doubted = fit([*off[1::2], *runs[6:]])
    truth = noisy.law.loss(runs[0].n_params, runs[0].tokens)
    errors = [abs(f.law.loss(runs[0].n_params, runs[0].tokens) - truth) for f in (trusted, doubted)]
    assert errors[1] < 0.6 * errors[0]


def test_few_tokens_per_parameter_count_less_where_the_batch_is_not_known() -> None:
    runs = grid(noise=NOISE)
    # Large models with a fifth of a token per parameter, 20 % above the law.
    bad = [FitPoint(n, 0.2 * n, 1.2 * float(LAW.loss(n, 0.2 * n))) for n in (1e8, 2e8, 4e8)]
    size = LAW.best_params(1e18)
    tokens = 1e18 / 6 / size
    with_bad = fit([*runs, *bad]).law.loss(size, tokens)
    assert with_bad == pytest.approx(fit(runs).law.loss(size, tokens), rel=0.005)
    unlike = FitPoint(1e8, 2e7, 5.0)
    like = dataclasses.replace(unlike, tokens=3e9)
    found = fit(runs)
    widths = [
        math.log(told.high_nats / told.low_nats)
        for told in (found.predict(o.n_params, o.tokens) for o in (unlike, like))
    ]
    assert widths[0] > 3 * widths[1]


def test_a_few_steps_count_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of five steps end where they begin, at the token frequencies, far below the law."""
    short = [
        FitPoint(n, 2e4, 0.7 * float(LAW.loss(n, 2e4)), 5e-3, 4e3) for n in (2e6, 4e6, 8e6, 1e7)
    ]
    size = LAW.best_params(1e17)

    def expected(seed: int, more: list[FitPoint]) -> float:
        found = fit([*study(LAW, seed=seed), *more])
        return float(found.law.loss(size, 1e17 / 6 / size))

    seeds = range(1, 7)
    plain = np.array([expected(seed, []) for seed in seeds])
    doubted = np.array([expected(seed, short) for seed in seeds])
    monkeypatch.setattr("studies.scaling.result.FEW_STEPS_SD", 0.0)
    trusted = np.array([expected(seed, short) for seed in seeds])
    assert np.abs(doubted - plain).mean() < 0.5 * np.abs(trusted - plain).mean()


def test_intervals_grow_with_distance(noisy: ScalingFit) -> None:
    widths = []
    for flops in (1e17, 1e18, 1e19):
        size = noisy.best_params(flops)
        told = noisy.predict(size, flops / 6 / size)
        assert told.low_nats < told.loss_nats < told.high_nats
        widths.append(told.high_nats / told.low_nats)
    assert widths == sorted(widths)
    low, high = noisy.best_params_interval(1e18)
    assert low < LAW.best_params(1e18) < high


def test_the_law_is_trusted_less_beyond_its_budgets(noisy: ScalingFit) -> None:
    """Certain of its law, a fit allows for a misfit of 0.7 scatters each factor e in FLOPs."""
    certain = noisy.draw(np.random.default_rng(0))
    halves = []
    for flops in (1e17, 1e19):
        size = certain.best_params(flops)
        told = certain.predict(size, flops / 6 / size)
        halves.append(math.log(told.high_nats / told.loss_nats))
    beyond = math.sqrt(halves[1] ** 2 - halves[0] ** 2) / halves[0]
    assert beyond == pytest.approx(0.7 * math.log(100), rel=0.02)


def test_learning_rates_and_batches_are_separated_from_size() -> None:
    """Rates thrice StepLaw's, mistuned by up to a decade: found, and the law beneath too."""
    found = fit(study(LAW, seed=1, n=80, rate_shift=3.0))
    assert found.knows_lr
    assert found.knows_batch
    size, tokens = 7e6, 2e7
    batch = steplaw_batch_tokens(tokens)
    assert found.tuned_lr(size, tokens, batch) == pytest.approx(
        3 * steplaw_lr(size, tokens), rel=0.25
    )
    assert found.k_lr_nats == pytest.approx(0.05, rel=0.3)
    best_batch = np.exp(best_ln_batch(found.theta, found.centre, np.log([tokens]))[0])
    assert best_batch == pytest.approx(batch, rel=0.5)
    assert found.law.loss(size, tokens) == pytest.approx(LAW.loss(size, tokens), rel=0.005)


def _random_world(rng: np.random.Generator) -> ScalingLaw:
    """A law about as far from published ones as they are from each other."""
    z = rng.standard_normal(6)
    alpha, beta = 0.3 * np.exp(0.3 * z[:2])
    size, data = 1.8 * np.exp(0.3 * z[2:4])
    return ScalingLaw(
        E=1.8 * np.exp(0.1 * z[4]),
        A=size * 5e6**alpha,
        alpha=alpha,
        B=data * 1.5e7**beta,
        beta=beta,
        delta=0.45 * np.exp(0.5 * z[5]),
    )


def test_the_size_chosen_for_a_hundred_times_the_budget() -> None:
    """40 mistuned trials at three rungs up to 1e15, 16 worlds: the choice at 1e17 by the fit has a
    small regret and by the measured losses a large one; the interval mostly holds the truth."""
    flops, sizes = 1e17, np.geomspace(SIZES[0], 10 * SIZES[1], 300)
    predicted, measured, inside = [], [], []
    for seed in range(16):
        rng = np.random.default_rng(100 + seed)
        law = _random_world(rng)
        runs = study(law, seed, rate_shift=float(np.exp(0.5 * rng.standard_normal())))
        found = fit(runs)
        truth = law.loss(sizes, flops / 6 / sizes)
        chosen = float(sizes[np.argmin(found.losses(sizes, flops / 6 / sizes))])
        lucky = min(runs, key=lambda r: r.loss_nats).n_params
        for size, regrets in ((chosen, predicted), (lucky, measured)):
            regrets.append(float(law.loss(size, flops / 6 / size) - truth.min()))
        told = found.predict(chosen, flops / 6 / chosen)
        inside.append(told.low_nats <= law.loss(chosen, flops / 6 / chosen) <= told.high_nats)
    assert np.median(predicted) < 0.02
    assert np.median(measured) > 0.2
    assert sum(inside) >= 11  # of 16 at 80 %: fewer with a probability of 8 in 100


def test_draws_of_losses_vary_together(noisy: ScalingFit) -> None:
    sizes, rng = np.array([4e7, 5e7]), np.random.default_rng(0)
    drawn = noisy.sample_losses(sizes, 1e18 / 6 / sizes, rng, 400)
    assert drawn.shape == (400, 2)
    assert drawn.mean(axis=0) == pytest.approx(noisy.losses(sizes, 1e18 / 6 / sizes), rel=0.01)
    assert np.std(drawn[:, 0] - drawn[:, 1]) < 0.3 * np.std(drawn[:, 0])
    again = noisy.sample_losses(sizes, 1e18 / 6 / sizes, np.random.default_rng(0), 400)
    assert np.array_equal(drawn, again)


def test_a_draw_is_a_law_of_its_own(noisy: ScalingFit) -> None:
    rng = np.random.default_rng(1)
    laws = {noisy.draw(rng).law.E for _ in range(20)}
    assert len(laws) > 5
    one = noisy.draw(rng)
    assert one.sample_losses([5e7], [2e8], rng, 3) == pytest.approx(one.law.loss(5e7, 2e8))


def test_a_shape_keeps_what_it_has_beside_the_law() -> None:
    """Sizes that are better or worse by 2 % in all their runs: an anchor tells which."""
    rng = np.random.default_rng(0)
    sizes = np.geomspace(1e7, 1e8, 8)
    own = 1 + 0.02 * np.sign(rng.standard_normal(8))
    runs = [
        FitPoint(float(n), float(r * n), float(LAW.loss(n, r * n) * f))
        for n, f in zip(sizes, own, strict=True)
        for r in (5, 10, 20, 40)
    ]
    found = fit(runs)
    assert found.shape_share > 0.7
    size, factor = float(sizes[3]), own[3]
    truth = float(LAW.loss(size, 200 * size)) * factor
    plain = found.predict(size, 200 * size)
    anchored = found.predict(size, 200 * size, anchors=[r for r in runs if r.n_params == size])
    assert abs(anchored.loss_nats - truth) < 0.5 * abs(plain.loss_nats - truth)
    assert anchored.high_nats / anchored.low_nats < plain.high_nats / plain.low_nats
    vague = [FitPoint(size, 10 * size, 5.0, stderr_nats=3.0)]
    unmoved = found.predict(size, 200 * size, anchors=vague)
    assert unmoved.loss_nats == pytest.approx(plain.loss_nats, rel=1e-3)


def test_a_fit_survives_json(tried: ScalingFit) -> None:
    data = json.loads(json.dumps(tried.to_dict()))
    assert len(data["draws"]) <= 200
    again = ScalingFit.from_dict(data)
    told, same = tried.predict(2e7, 8e8), again.predict(2e7, 8e8)
    assert same.loss_nats == pytest.approx(told.loss_nats, rel=1e-4)
    assert same.low_nats == pytest.approx(told.low_nats, rel=1e-3)
    assert again.to_dict() == data
    assert again.tuned_lr(2e7, 8e8) == pytest.approx(tried.tuned_lr(2e7, 8e8), rel=1e-4)


def test_the_same_seed_gives_the_same_fit(tried: ScalingFit) -> None:
    runs = study(LAW, seed=3, rate_shift=2.0)
    assert fit(runs).to_dict() == tried.to_dict()
    other = fit(runs, seed=1)
    assert np.array_equal(other.theta, tried.theta)
    assert not np.array_equal(other.draws, tried.draws)


def test_priors_decide_where_the_runs_are_few() -> None:
    few = grid(budgets=(1e16, 2e16))[::2]
    low, high = (fit(few, priors=Priors(entropy_nats=e, entropy_sd=0.02)) for e in (1.4, 2.2))
    floors = [low.law.E, high.law.E]
    assert floors == pytest.approx([1.4, 2.2], rel=0.05)
    assert low.predict(1e9, 2e10).loss_nats < high.predict(1e9, 2e10).loss_nats


def test_losses_of_bytes_lie_below_the_floor_of_words() -> None:
    law = ScalingLaw(E=0.5, A=20.0, alpha=0.3, B=40.0, beta=0.3, delta=0.5)
    found = fit(grid(law))
    size = law.best_params(1e18)
    told = found.predict(size, 1e18 / 6 / size)
    assert told.low_nats < law.loss(size, 1e18 / 6 / size) < told.high_nats


def _runs(*sizes_and_tokens: tuple[float, float]) -> list[FitPoint]:
    return [FitPoint(n, d, float(LAW.loss(n, d))) for n, d in sizes_and_tokens]


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "no complete runs of no sizes at no budgets; add runs of other sizes and budgets, 5"),
        (
            _runs((1e7, 1e8), (2e7, 2e8), (3e7, 1e8)),
            "too few runs to fit a scaling law: 3 complete runs of 3 sizes at 3 budgets; add ",
        ),
        (grid(budgets=(1e16,)), "6 sizes at 1 budget; add runs at another budget (--rungs)"),
        (
            _runs(*[(1e7, d) for d in (1e8, 2e8, 4e8, 8e8, 1.6e9)]),
            "5 complete runs of 1 size at 5 budgets; add smaller or larger models",
        ),
        (
            [*grid(), *(dataclasses.replace(r, group="c4") for r in grid())],
            "runs of 2 groups ((none), c4) cannot share a scaling law",
        ),
    ],
)
def test_refusals(runs: list[FitPoint], message: str) -> None:
    with pytest.raises(FitRefused, match=re.escape(message)):
        fit(runs)


def test_a_fit_of_no_use_is_refused() -> None:
    rng = np.random.default_rng(0)
    runs = [
        dataclasses.replace(r, loss_nats=r.loss_nats * float(np.exp(0.5 * rng.standard_normal())))
        for r in grid()
    ]
    with pytest.raises(FitRefused, match="leave the loss at 10 times the largest budget uncertain"):
        fit(runs)


def test_budgets_are_counted_through_whole_steps() -> None:
    runs = [FitPoint(1e7, d, 4.0) for d in (1e8, 1.02e8, 0.99e8, 2e8)]
    assert budgets_of(runs) == pytest.approx([6.02e15, 1.2e16], rel=0.01)
    assert budgets_of([]) == []


def test_unknown_settings_are_taken_as_tuned(tried: ScalingFit) -> None:
    known = FitData.of([FitPoint(5e6, 4e7, 5.0, max_lr=1e-3)])
    unknown = FitData.of([FitPoint(5e6, 4e7, 5.0)])
    mixed = FitData.of([FitPoint(5e6, 4e7, 5.0, max_lr=1e-3), FitPoint(5e6, 4e7, 5.0)])
    both = log_loss(tried.theta, tried.centre, mixed)
    assert both[0] == pytest.approx(log_loss(tried.theta, tried.centre, known)[0])
    assert both[1] == pytest.approx(log_loss(tried.theta, tried.centre, unknown)[0])
    assert both[0] > both[1]


def test_score_of_runs_held_out(noisy: ScalingFit) -> None:
    later = grid(budgets=(1e18,))
    # A larger model with half a token per parameter, far above the law.
    stray = FitPoint(5e8, 2.5e8, 9.0)
    told = score(noisy, [*later, stray])
    assert (told.all.n, told.valid.n, told.best.n) == (7, 4, 2)
    assert told.valid.coverage == 1.0
    assert told.valid.mean_error is not None
    assert told.valid.mean_error < 0.01
    assert told.all.mean_error is not None
    assert told.all.mean_error > 0.04
    assert len(told.regret_nats) == 1
    assert 0 <= told.regret_nats[0] < 0.02
    assert any("with 3 tokens per parameter or more (4)" in line for line in told.sentences())
