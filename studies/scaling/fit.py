"""Fits the scaling law to finished runs: the most probable law, its scatter, and draws of it.

Residuals of the log loss under Huber's loss, as in Hoffmann et al. 2022 (appendix D) and Besiroglu
et al. 2024; Gaussian priors (`priors`); the maximum from several starts by
`scipy.optimize.least_squares`; the scatter in turns with it; uncertainty by Laplace's approximation
there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from budgetsweep.errors import FitRefused
from budgetsweep.formats import plural
from studies.scaling.fit_data import FitData, FitPoint, budgets_of, sizes_of
from studies.scaling.law import FloatArray
from studies.scaling.likelihood import HUBER, Centre, huber, log_loss
from studies.scaling.priors import N_LAW, N_LR, NAMES, Priors
from studies.scaling.result import ScalingFit, undertrained_sd

N_DRAWS = 200
FEWEST_PROPOSED, MOST_PROPOSED = 1000, 4000
"""Proposals that draws are chosen from; fewer for many points, which leave less skew."""
WIDENED = 1.1
FEWEST_RUNS = 5
CLOSEST_SIZES = 1.5
"""Factor between the smallest and the largest model that a fit needs."""
MOST_UNCERTAIN = 0.15
"""Half an 80 % interval at ten times the largest budget, relative; a wider one is of no use."""
ROUNDS = 3
"""Turns of law and scatter."""
STARTS = ((0.3, 0.9), (0.3, 0.25), (0.6, 0.5))
"""Exponents and delta to begin at."""
START_POINTS = 200
_STEP = 1e-5
_BOUNDED_SQUARE = 0.7784652
"""Mean of min(|z|, 1.5)² of a standard normal z."""


@dataclass(frozen=True)
class _Problem:
    """Data points, priors, and the parameters that the points inform."""

    points: FitData
    centre: Centre
    means: FloatArray
    sds: FloatArray
    active: NDArray[np.intp]
    """Indices; the other parameters stay at their prior."""

    @classmethod
    def of(cls, points: FitData, priors: Priors) -> _Problem:
        lowest, middle = float(np.exp(points.loss.min())), float(np.exp(np.median(points.loss)))
        means, sds = priors.vector(lowest, middle)
        known = np.ones(len(NAMES), dtype=bool)
        known[N_LAW : N_LAW + N_LR] = np.isfinite(points.max_lr).any()
        known[N_LAW + N_LR :] = np.isfinite(points.batch_tokens).any()
        return cls(points, Centre.of(points), means, sds, np.flatnonzero(known))

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

    @property
    def prior_means(self) -> FloatArray:
        """Of the active parameters."""
        return self.means[self.active]

    @property
    def prior_sds(self) -> FloatArray:
        """Of the active parameters."""
        return self.sds[self.active]


def fit(
    points: Sequence[FitPoint],
    *,
    priors: Priors | None = None,
    seed: int = 0,
    must_reach: bool = True,
) -> ScalingFit:
    """Fit the law to finished runs of one data set; `seed` is of the draws.

    Args:
        points: ends of decayed schedules, parameters counted alike.
        priors: what is believed beforehand.
        seed: of the draws.
        must_reach: refuse a fit that is of no use at ten times the largest budget.

    Raises:
        FitRefused: the runs are too few or too alike; the message says what to add.
    """
    check_design(points)
    priors = priors or Priors()
    data = FitData.of(points)
    problem = _Problem.of(data, priors)
    extra = np.hypot(data.stderr, undertrained_sd(data))
    noise = 2.5 * priors.noise.mean
    values, dof = _best_of_starts(problem, np.hypot(noise, extra)), priors.noise.sd
    for _ in range(ROUNDS):
        spread = np.hypot(noise, extra)
        values, _ = _maximise(problem, values, spread)
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
        shape_share=_shape_share(data, problem.residuals(values) / np.hypot(noise, extra)),
        n_points=len(points),
        n_shapes=len(sizes_of(points)),
        n_budgets=len(budgets_of(points)),
        n_params_range=_range(data.n_params),
        tokens_range=_range(data.tokens),
        flops_range=_range([math.log(point.flops) for point in points]),
        knows_lr=bool(np.isfinite(data.max_lr).any()),
        knows_batch=bool(np.isfinite(data.batch_tokens).any()),
    )
    if must_reach:
        _check_reach(found)
    return found


def check_design(points: Sequence[FitPoint]) -> None:
    """Refuse what no prior can make up for.

    Raises:
        FitRefused: runs of several groups, too few, of sizes too close or of one budget.
    """
    groups = sorted({point.group for point in points})
    if len(groups) > 1:
        named = ", ".join(group or "(none)" for group in groups[:5])
        raise FitRefused(
            f"runs of {len(groups)} groups ({named}) cannot share a scaling law; choose one"
        )
    sizes, budgets = sizes_of(points), budgets_of(points)
    distinct = len({(round(point.n_params), round(point.tokens)) for point in points})
    missing = None
    if distinct < FEWEST_RUNS:
        missing = f"add runs of other sizes and budgets, {FEWEST_RUNS} in all or more"
    elif sizes[-1] < CLOSEST_SIZES * sizes[0]:
        missing = (
            f"add smaller or larger models, since within a factor of {CLOSEST_SIZES:g} in size A "
            "cannot be separated from E"
        )
    elif len(budgets) < 2:
        missing = "add runs at another budget (--rungs), since one cannot separate A from B"
    if missing is not None:
        raise FitRefused(
            f"too few runs to fit a scaling law: {plural(distinct, 'complete run')} of "
            f"{plural(len(sizes), 'size')} at {plural(len(budgets), 'budget')}; {missing}"
        )


def _check_reach(found: ScalingFit) -> None:
    """Refuse a fit whose interval is too wide to be of use."""
    flops = 10 * found.flops_range[1]
    n_params = found.best_params(flops)
    predicted = found.predict(n_params, flops / (6 * n_params))
    half = math.log(predicted.high_nats / predicted.low_nats) / 2
    if not half <= MOST_UNCERTAIN:
        raise FitRefused(
            f"too few runs to fit a scaling law: {found.n_points} complete runs of "
            f"{found.n_shapes} sizes at {found.n_budgets} budgets leave the loss at 10 times the "
            f"largest budget uncertain by {100 * min(half, 9.99):.0f} % (80 % interval; at most "
            f"{100 * MOST_UNCERTAIN:.0f} % is of use); add runs of other sizes and budgets"
        )


def _huber_rho(n_points: int, n_all: int) -> object:
    """Huber's loss for scipy: of the points' squared residuals; the priors' stay quadratic."""
    is_point = np.arange(n_all) < n_points

    def rho(z: FloatArray) -> FloatArray:
        far = is_point & (z > HUBER**2)
        root = np.sqrt(np.where(far, z, 1.0))
        value = np.where(far, 2 * HUBER * root - HUBER**2, z)
        slope = np.where(far, HUBER / root, 1.0)
        bend = np.where(far, -0.5 * HUBER / root**3, 0.0)
        return np.array([value, slope, bend])

    return rho


def _maximise(
    problem: _Problem, start: FloatArray, spread: FloatArray, most: int = 60
) -> tuple[FloatArray, float]:
    """The most probable parameters near `start`, and their cost."""
    means, sds = problem.prior_means, problem.prior_sds

    def residuals(values: FloatArray) -> FloatArray:
        return np.concatenate([problem.residuals(values) / spread, (values - means) / sds])

    def jacobian(values: FloatArray) -> FloatArray:
        return np.concatenate([problem.jacobian(values) / spread[:, None], np.diag(1 / sds)])

    found = least_squares(
        residuals, start, jac=jacobian, x_scale=sds, max_nfev=most, xtol=1e-6, ftol=1e-8, gtol=1e-8,
        loss=_huber_rho(len(spread), len(spread) + len(sds)),
    )  # fmt: skip
    return found.x, float(found.cost)


def _best_of_starts(problem: _Problem, spread: FloatArray) -> FloatArray:
    """The best of several starts after a few steps; of many points an even choice suffices."""
    if len(spread) > START_POINTS:
        chosen = np.linspace(0, len(spread) - 1, START_POINTS).round().astype(int)
        problem, spread = replace(problem, points=problem.points.take(chosen)), spread[chosen]
    found = []
    for exponent, delta in STARTS:
        theta = problem.means.copy()
        theta[[2, 4]], theta[5] = math.log(exponent), math.log(delta)
        found.append(_maximise(problem, theta[problem.active], spread, 25))
    return min(found, key=lambda end: end[1])[0]


def _covariance(problem: _Problem, values: FloatArray, spread: FloatArray) -> FloatArray:
    """Laplace: the inverse of the curvature of Huber's loss and the priors."""
    z = np.abs(problem.residuals(values) / spread)
    weights = np.where(z > HUBER, HUBER / np.maximum(z, 1e-12), 1.0)
    jacobian = problem.jacobian(values) / spread[:, None]
    curvature = (jacobian * weights[:, None]).T @ jacobian + np.diag(1 / problem.prior_sds**2)
    return np.asarray(np.linalg.inv(curvature), dtype=np.float64)


def _draws(
    problem: _Problem, values: FloatArray, spread: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """Draws of the active parameters: (N_DRAWS, active).

    Laplace's normal, somewhat widened, then resampled by the posterior itself, which is skewed
    (E cannot pass the lowest loss): sampling importance resampling (Rubin 1987).
    """
    root = np.linalg.cholesky(_covariance(problem, values, spread))
    n = int(np.clip(400_000 / len(spread), FEWEST_PROPOSED, MOST_PROPOSED))
    normal = rng.standard_normal((n, len(values)))
    proposed = values + WIDENED * normal @ root.T
    energy = huber(np.abs(problem.residuals(proposed) / spread)).sum(axis=1)
    energy += (((proposed - problem.prior_means) / problem.prior_sds) ** 2 / 2).sum(axis=1)
    ratio = (normal**2).sum(axis=1) / 2 - energy
    # No draw may stand for more than a twentieth of all: few points make heavy tails.
    weights = np.exp(ratio - ratio.max())
    for _ in range(20):
        weights = np.minimum(weights / weights.sum(), 0.05)
    weights /= weights.sum()
    return np.asarray(proposed[rng.choice(n, size=N_DRAWS, p=weights)])


def _scatter(
    problem: _Problem, values: FloatArray, covariance: FloatArray, spread: FloatArray,
    extra: FloatArray, priors: Priors,
) -> tuple[float, float]:  # fmt: skip
    """Relative scatter and its degrees of freedom: the prior's points and the residuals.

    Huber's proposal 2; a parameter counts as spent as far as the points, not its prior, determine
    it; a point that is uncertain in itself counts by its share.
    """
    z = problem.residuals(values) / spread
    share = ((spread**2 - extra**2) / spread**2) ** 2
    spent = len(values) - float(np.sum(np.diag(covariance) / problem.prior_sds**2))
    bounded = np.minimum(np.abs(z), HUBER) ** 2 / _BOUNDED_SQUARE
    dof = max(0.0, float(share.sum()) - spent)
    seen = float(np.mean(spread**2 - extra**2)) * float(np.sum(share * bounded))
    weight = priors.noise.sd
    total = (weight * priors.noise.mean**2 + seen) / (weight + dof)
    return math.sqrt(total), weight + dof


def _shape_share(points: FitData, z: FloatArray) -> float:
    """Share of the scatter that runs of one size have in common.

    The mean product of the residuals of two runs of one size over their mean square, shrunk to a
    half as if by four more pairs.
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
