"""Fits the scaling law to finished runs: the most probable law, its scatter, and draws of it.

Residuals of the log loss under Huber's loss, as in Hoffmann et al. 2022 (appendix D) and Besiroglu
et al. 2024; Gaussian priors (`priors`); the maximum from several starts by
`scipy.optimize.least_squares`; the scatter by turns with it; uncertainty by Laplace's
approximation there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from budgetsweep.errors import FitRefused
from studies.diagnosis.curves import FloatArray
from studies.scaling.fit_data import Observation, Points, budgets_of, shapes_of
from studies.scaling.likelihood import Centre, log_loss
from studies.scaling.priors import N_LAW, N_LR, NAMES, Priors
from studies.scaling.result import ScalingFit, undertrained_sd

HUBER = 1.5
"""Residuals beyond so many standard deviations count linearly."""
N_DRAWS = 200
PROPOSED = (1000, 4000)
"""Fewest and most proposals that draws are chosen from; fewer for many points, which leave less
skew."""
WIDENED = 1.1
LEAST_POINTS = 5
MOST_UNCERTAIN = 0.15
"""Half an 80 % interval at ten times the largest budget, relative; wider ones tell nothing."""
ROUNDS = 3
"""Turns of law and scatter."""
STARTS = ((0.3, 0.9), (0.3, 0.25), (0.6, 0.5))
"""Exponents and delta to begin at."""
START_POINTS = 200
_STEP = 1e-5


@dataclass(frozen=True)
class _Problem:
    """Points, priors, and which parameters the points can tell anything about."""

    points: Points
    centre: Centre
    means: FloatArray
    sds: FloatArray
    active: NDArray[np.intp]
    """Indices; the other parameters stay at their prior."""

    def full(self, values: FloatArray) -> FloatArray:
        """All parameters from the active ones: (..., active) → (..., parameters)."""
        theta = np.broadcast_to(self.means, (*values.shape[:-1], len(self.means))).copy()
        theta[..., self.active] = values
        return theta

    def residuals(self, values: FloatArray) -> FloatArray:
        """Predicted less measured log loss: (..., points)."""
        return log_loss(self.full(values), self.centre, self.points) - self.points.loss

    def jacobian(self, values: FloatArray) -> FloatArray:
        """Central differences of the residuals, all at once: (points, active)."""
        steps = _STEP * np.eye(len(values))
        ends = self.residuals(np.concatenate([values + steps, values - steps]))
        return ((ends[: len(values)] - ends[len(values) :]) / (2 * _STEP)).T

    def prior_sds(self) -> FloatArray:
        """Standard deviations of the active parameters' priors."""
        return self.sds[self.active]


def fit(
    observations: Sequence[Observation],
    *,
    priors: Priors | None = None,
    seed: int = 0,
    must_reach: bool = True,
) -> ScalingFit:
    """Fit the law to finished runs of one data set.

    Args:
        observations: ends of decayed schedules, parameters counted alike.
        priors: what is believed beforehand.
        seed: of the draws.
        must_reach: refuse a fit that tells nothing of ten times the largest budget. A sampler that
            compares runs within their budgets needs no such reach.

    Raises:
        FitRefused: the runs do not carry a fit; the message says why.
    """
    check_design(observations)
    priors = priors or Priors()
    points = Points.of(observations)
    problem = _problem(points, priors)
    extra = np.hypot(points.stderr, undertrained_sd(points))
    noise = 2.5 * priors.noise.mean
    values, dof = _best_of_starts(problem, np.hypot(noise, extra)), priors.noise.sd
    for _ in range(ROUNDS):
        spread = np.hypot(noise, extra)
        values = _climb(problem, values, spread)
        covariance = _covariance(problem, values, spread)
        noise, dof = _scatter(problem, values, covariance, spread, extra, priors)
    theta = problem.full(values)
    rng = np.random.default_rng(seed)
    draws = problem.means + problem.sds * rng.standard_normal((N_DRAWS, len(theta)))
    spread = np.hypot(noise, extra)
    draws[:, problem.active] = _draws(problem, values, spread, rng)
    found = ScalingFit(
        theta=theta,
        draws=draws,
        centre=problem.centre,
        noise=noise,
        dof=dof,
        shape_share=_shape_share(points, problem.residuals(values) / np.hypot(noise, extra)),
        n_points=len(observations),
        n_shapes=len(shapes_of(observations)),
        n_budgets=len(budgets_of(observations)),
        n_params_range=_range(points.n_params),
        tokens_range=_range(points.tokens),
        flops_range=_range([math.log(one.flops) for one in observations]),
        loss_range=_range(points.loss),
        knows_lr=bool(np.isfinite(points.max_lr).any()),
        knows_batch=bool(np.isfinite(points.batch_tokens).any()),
        group=observations[0].group,
    )
    if must_reach:
        _check_use(found)
    return found


def check_design(observations: Sequence[Observation]) -> None:
    """Refuse what no prior can mend.

    Raises:
        FitRefused: runs of several groups, too few, of sizes too close or of one budget.
    """
    groups = sorted({one.group for one in observations})
    if len(groups) > 1:
        named = ", ".join(group or "(none)" for group in groups[:5])
        raise FitRefused(
            f"scaling fit: runs of {len(groups)} groups ({named}) are not of one law; give one"
        )
    shapes, budgets = shapes_of(observations), budgets_of(observations)
    distinct = {(round(one.n_params), round(one.tokens)) for one in observations}
    what = (
        f"{_count(len(distinct), 'run')} of {_count(len(shapes), 'shape')} at "
        f"{_count(len(budgets), 'budget')}"
    )
    if len(distinct) < LEAST_POINTS:
        raise FitRefused(f"scaling fit: {what}: too few, it takes {LEAST_POINTS} different runs")
    if shapes[-1] < 1.5 * shapes[0]:
        raise FitRefused(
            f"scaling fit: {what}: sizes within a factor 1.5 cannot separate A from E; "
            "add other sizes"
        )
    if len(budgets) < 2:
        raise FitRefused(f"scaling fit: {what}: cannot separate A from B; add --rungs")


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _check_use(found: ScalingFit) -> None:
    """Refuse a fit whose interval is too wide to be of use."""
    flops = 10 * found.flops_range[1]
    n_params = found.best_params(flops)
    told = found.predict(n_params, flops / (6 * n_params))
    half = math.log(told.high_nats / told.low_nats) / 2
    if not half <= MOST_UNCERTAIN:
        raise FitRefused(
            f"scaling fit: {found.n_points} runs of {found.n_shapes} shapes at {found.n_budgets} "
            f"budgets leave the loss at 10 times the largest budget uncertain by "
            f"{100 * min(half, 9.99):.0f} % (80 % interval; at most {100 * MOST_UNCERTAIN:.0f} % "
            "is of use); add runs of other sizes and budgets"
        )


def _problem(points: Points, priors: Priors) -> _Problem:
    lowest, middle = float(np.exp(points.loss.min())), float(np.exp(np.median(points.loss)))
    means, sds = priors.vector(lowest, middle)
    known = np.ones(len(NAMES), dtype=bool)
    known[N_LAW : N_LAW + N_LR] = np.isfinite(points.max_lr).any()
    known[N_LAW + N_LR :] = np.isfinite(points.batch_tokens).any()
    return _Problem(points, Centre.of(points), means, sds, np.flatnonzero(known))


def _huber(n_points: int, n_all: int) -> object:
    """Huber's loss of the points' squared residuals; the priors' stay quadratic."""
    is_point = np.arange(n_all) < n_points

    def rho(z: FloatArray) -> FloatArray:
        far = is_point & (z > HUBER**2)
        root = np.sqrt(np.where(far, z, 1.0))
        value = np.where(far, 2 * HUBER * root - HUBER**2, z)
        slope = np.where(far, HUBER / root, 1.0)
        bend = np.where(far, -0.5 * HUBER / root**3, 0.0)
        return np.array([value, slope, bend])

    return rho


def _climb(problem: _Problem, start: FloatArray, spread: FloatArray) -> FloatArray:
    """The most probable parameters near `start`."""
    return _solve(problem, start, spread, 60)[0]


def _solve(
    problem: _Problem, start: FloatArray, spread: FloatArray, most: int
) -> tuple[FloatArray, float]:
    means, sds = problem.means[problem.active], problem.prior_sds()

    def fun(values: FloatArray) -> FloatArray:
        return np.concatenate([problem.residuals(values) / spread, (values - means) / sds])

    def jac(values: FloatArray) -> FloatArray:
        return np.concatenate([problem.jacobian(values) / spread[:, None], np.diag(1 / sds)])

    found = least_squares(
        fun, start, jac=jac, x_scale=sds, loss=_huber(len(spread), len(spread) + len(sds)),
        max_nfev=most, xtol=1e-6, ftol=1e-8, gtol=1e-8,
    )  # fmt: skip
    return found.x, float(found.cost)


def _best_of_starts(problem: _Problem, spread: FloatArray) -> FloatArray:
    """The best of several starts, each climbed a little; of many points an even choice suffices."""
    if len(spread) > START_POINTS:
        chosen = np.linspace(0, len(spread) - 1, START_POINTS).round().astype(int)
        problem, spread = replace(problem, points=problem.points.take(chosen)), spread[chosen]
    best: tuple[FloatArray, float] | None = None
    for exponent, delta in STARTS:
        theta = problem.means.copy()
        theta[[2, 4]], theta[5] = math.log(exponent), math.log(delta)
        found = _solve(problem, theta[problem.active], spread, 25)
        if best is None or found[1] < best[1]:
            best = found
    assert best is not None
    return best[0]


def _covariance(problem: _Problem, values: FloatArray, spread: FloatArray) -> FloatArray:
    """Laplace: the inverse of the curvature of Huber's loss and the priors."""
    z = np.abs(problem.residuals(values) / spread)
    weights = np.where(z > HUBER, HUBER / np.maximum(z, 1e-12), 1.0)
    jacobian = problem.jacobian(values) / spread[:, None]
    curvature = (jacobian * weights[:, None]).T @ jacobian + np.diag(1 / problem.prior_sds() ** 2)
    return np.asarray(np.linalg.inv(curvature), dtype=np.float64)


def _draws(
    problem: _Problem, values: FloatArray, spread: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """Draws of the active parameters: (N_DRAWS, active).

    Laplace's normal, somewhat widened, then resampled by the posterior itself, which is skewed
    (E cannot pass the lowest loss): sampling importance resampling (Rubin 1987).
    """
    root = np.linalg.cholesky(_covariance(problem, values, spread))
    n = int(np.clip(400_000 / len(spread), *PROPOSED))
    normal = rng.standard_normal((n, len(values)))
    proposed = values + WIDENED * normal @ root.T
    means, sds = problem.means[problem.active], problem.prior_sds()
    z = np.abs(problem.residuals(proposed) / spread)
    energy = np.where(z > HUBER, HUBER * (z - HUBER / 2), z**2 / 2).sum(axis=1)
    energy += (((proposed - means) / sds) ** 2 / 2).sum(axis=1)
    ratio = (normal**2).sum(axis=1) / 2 - energy
    # No draw may stand for more than a twentieth of all: few points make heavy tails.
    weights = np.exp(ratio - ratio.max())
    for _ in range(20):
        weights = np.minimum(weights / weights.sum(), 0.05)
    weights /= weights.sum()
    chosen = rng.choice(n, size=N_DRAWS, p=weights)
    return np.asarray(proposed[chosen])


def _scatter(
    problem: _Problem, values: FloatArray, covariance: FloatArray, spread: FloatArray,
    extra: FloatArray, priors: Priors,
) -> tuple[float, float]:  # fmt: skip
    """Relative scatter and its degrees of freedom: the prior's points and the residuals.

    Huber's proposal 2; a parameter counts as spent as far as the points, not its prior, tell it;
    a point that is uncertain in itself counts by its share.
    """
    z = problem.residuals(values) / spread
    share = ((spread**2 - extra**2) / spread**2) ** 2
    told = len(values) - float(np.sum(np.diag(covariance) / problem.prior_sds() ** 2))
    bounded = np.minimum(np.abs(z), HUBER) ** 2 / _BOUNDED_SQUARE
    dof = max(0.0, float(share.sum()) - told)
    seen = float(np.mean(spread**2 - extra**2)) * float(np.sum(share * bounded))
    weight = priors.noise.sd
    total = (weight * priors.noise.mean**2 + seen) / (weight + dof)
    return math.sqrt(total), weight + dof


_BOUNDED_SQUARE = 0.7784652
"""Mean of min(|z|, 1.5)² of a standard normal z."""


def _shape_share(points: Points, z: FloatArray) -> float:
    """Share of the scatter that runs of one size have in common.

    The mean product of the residuals of two runs of one size over their mean square, drawn to a
    half as if four pairs had said so.
    """
    sizes = np.round(np.exp(points.n_params))
    bounded = np.clip(z, -2 * HUBER, 2 * HUBER)
    products = total = 0.0
    for size in np.unique(sizes):
        own = bounded[sizes == size]
        products += float((own.sum() ** 2 - (own**2).sum()) / 2)
        total += len(own) * (len(own) - 1) / 2
    square = float(np.mean(bounded**2))
    if square <= 0:
        return 0.5
    share = (products / square + 0.5 * 4) / (total + 4)
    return float(np.clip(share, 0.0, 0.95))


def _range(logs: Sequence[float] | FloatArray) -> tuple[float, float]:
    return float(np.exp(np.min(logs))), float(np.exp(np.max(logs)))
