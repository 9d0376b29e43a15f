"""One rule a verdict: a function of a curve's signals that gives evidence, or nothing.

Every threshold below was chosen on the development seeds of `benchmarks/diagnosis.py` and on
nothing else; the table of docs/experiments.md is of other seeds. The figures beside a threshold are
what those runs showed, sound ones against broken ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from studies.diagnosis.signals import LATE, Signals

Rule = Callable[[Signals], str | None]

RISE_NATS, RISE_NOISE = 1.0, 8.0
"""Rise of the training loss above its lowest before, in nats and in standard deviations of a point:
0.9 nats on an odd batch early in a sound run, 7.6 deviations with one sequence per step; 1.2 nats
and 10 deviations where the learning rate was too high."""

BITS_PER_BYTE = ((1e6, 1.2), (1e8, 0.85), (1e10, 0.6))
"""Bytes of text trained on, and bits per byte below which no causal model falls on natural text
(*assumption*, on the safe side). The best compressors need 1.18 bits per byte on 1e8 bytes of
Wikipedia and 0.88 on 1e9 (cmix, Large Text Compression Benchmark), and about 1.7 on a book of 1e6;
published language models reach 0.55 to 0.6 on web text with 1e12 tokens and more."""
PLUNGE_NATS, PLUNGE_TIMES = 0.6, 2.0
"""Fall of the training loss per doubling of steps after 45 % of the run, and over that before: up
to 0.39 and 3 times where the rate was too high, 0.9 and more where the mask was missing."""
PLUNGE_BEFORE, PLUNGE_TO = 0.1, 0.35
"""It must have been falling before, and end at this share of the loss at the start."""
BYTES_PER_TOKEN_AT_LEAST = 3.0
"""Where it is not known and the vocabulary is larger than `BYTE_VOCABULARY` (*assumption*; GPT-2
has 4.3 to 4.6 on English)."""
BYTE_VOCABULARY = 1000

PILED_UP = ((3.0, 0.06), (5.0, 0.12))
"""Late gradient norm over that of the start, and median change of its logarithm between points.
Uncleared 3.4 to 13 and 0.005 to 0.10; sound runs 0.2 to 2.2 and 0.08 and more."""
CLIP_FLOOR, CLIP_MEDIAN, CLIP_BAND = 0.88, 1.5, 1.8
"""A gradient that is clipped and not cleared keeps the norm `grad_clip`, and a new one is added to
it: no norm below 0.90 of grad_clip, the median 1.25 to 1.27, the 90th percentile 1.3 to 1.5 times
the 10th. Sound runs fall to 0.73 and less at some point."""

FEWEST_NORMS = 20

VAL_RISE_NATS = 0.03
"""Rise of the validation loss from its lowest: 0 in sound runs."""
TRAIN_FALL_NATS = 0.1
STALL_FROM, STALL_TRAIN_NATS, STALL_SHARE = 0.4, 0.15, 0.1
"""Or: from here on the training loss falls by this and the validation loss by less than that share
of it."""

RATE_JUMPS = 0.3
"""Median change of the gradient norm's logarithm between points: 0.08 to 0.18 in sound runs, 0.35
and more at a rate 15 to 150 times too high, unless it rose."""
EARLY_HALF = 0.1

SLOW_HALF = 0.12
"""Share of the steps for half of the descent: 0.04 to 0.09 in sound runs, 0.13 and more at a rate
30 to 300 times too low."""
SLOW_DESCENT = 0.25
"""Descent as a share of the loss at the start. To know the frequencies of tokens alone takes 0.4
(bytes) or 0.3 (GPT-2)."""

LONG_WARMUP = 0.4
CONSTANT = 0.5
"""Last learning rate over the highest."""

NOISY_NATS = 0.45
"""Standard deviation of one step's loss: 0.13 to 0.21 in sound runs of 16 to 24 short sequences of
bytes and up to 0.36 in real runs of 4 sequences, 0.59 and more with one."""
VISIBLE_NATS = 0.05
"""And of a point's loss: the mean over very many steps shows drift rather than noise."""
SEQUENCE_NATS = 1.15
"""The same times √(sequences in a step): 0.4 to 0.85 where they are drawn independently."""
SHORT_SEQUENCE = 24
"""Tokens below which a sequence is expected to vary more, by the square root (*assumption*)."""
WANDER_NATS, WANDER, WANDER_ERRORS = 0.05, 1.35, 3.0
"""Standard deviation of points around their trend, von Neumann's ratio (2 where neighbours are
independent; 1.1 to 2.1 in order, and 1.3 in one sound run), and its distance from 2 in standard
errors."""


def _lr_range(s: Signals, first: float = 0.0, last: float = math.inf) -> str:
    if not s.lr.size:
        return ""
    inside = s.lr[(s.lr_steps >= first) & (s.lr_steps <= last)]
    if not inside.size:
        return ""
    high = inside.max()
    peak = ", its peak" if high >= 0.95 * s.lr.max() else f" (peak {s.lr.max():.2g})"
    return f" while the learning rate was up to {high:.2g}{peak}"


def leak(s: Signals) -> str | None:
    """The loss is below what any causal model reaches, or plunges a second time."""
    floor, how = _floor_nats(s)
    losses, steps, name = (s.val, s.val_steps, "validation")
    if not losses.size:
        losses, steps, name = (s.smooth, s.steps, "training")
    below = np.flatnonzero(losses < floor)
    if not below.size:
        return _second_descent(s)
    alone = "" if s.val.size else "; without a validation loss, a memorised data set looks the same"
    return (
        f"the {name} loss fell to {losses.min():.2f} nats per token (below {floor:.2f} from step "
        f"{steps[below[0]]:.0f} on), {how}{alone}"
    )


def _second_descent(s: Signals) -> str | None:
    """The loss falls ever faster although the first descent is long over."""
    if s.half_way > EARLY_HALF or _never_got_going(s) or not s.val.size:
        return None
    before, after = s.falls
    late = s.val_steps >= 0.4 * s.last_step
    val_fell = s.val[late][0] - s.val[-1] if late.any() else 0.0
    if after < PLUNGE_NATS or after < PLUNGE_TIMES * before or val_fell < PLUNGE_NATS / 2:
        return None
    if before < PLUNGE_BEFORE or float(s.smooth[-1]) > PLUNGE_TO * s.start_nats:
        return None  # it comes back from a rise
    return (
        f"the training loss fell by {before:.2f} nats per doubling of steps from 15 to 45 % of the "
        f"run and by {after:.2f} from there on, the validation loss by {val_fell:.2f} nats in all: "
        "a second descent, as when a model finds the next token among its inputs"
    )


def _floor_nats(s: Signals) -> tuple[float, str]:
    """Lowest loss of a causal model, nats per token, and in words where it is from."""
    per_token = s.facts.bytes_per_token
    if per_token is None:
        vocabulary = s.facts.n_vocab or math.exp(min(s.start_nats, 12.0))
        per_token = BYTES_PER_TOKEN_AT_LEAST if vocabulary > BYTE_VOCABULARY else 1.0
    tokens = s.tokens or (s.facts.tokens_per_step or 0) * s.last_step
    if tokens:
        amounts, bits = zip(*BITS_PER_BYTE, strict=True)
        at = float(np.interp(math.log(tokens * per_token), np.log(amounts), bits))
        how = f"{at:.2f} bits per byte, out of reach after {tokens:.2g} tokens of natural text"
    else:
        at = BITS_PER_BYTE[-1][1]
        how = f"{at:.2f} bits per byte, out of reach on natural text"
    return float(at) * math.log(2) * per_token, how


def grad_not_cleared(s: Signals) -> str | None:
    """Gradients pile up: the norm grows and changes slowly, or never falls below the clip."""
    late, jumps = s.late_norms, s.norm_jumps
    if jumps is None or s.norms.size < FEWEST_NORMS:
        return None
    start, middle = float(np.median(s.norms[:3])), float(np.median(late))
    if any(middle >= times * start and jumps <= steady for times, steady in PILED_UP):
        return (
            f"the gradient's norm grew from {start:.3g} to {middle:.3g} and changes by only "
            f"{100 * jumps:.0f} % from point to point, as a sum over all steps does"
        )
    clip = s.facts.grad_clip
    noisy = s.noise_nats is not None and s.noise_nats >= NOISY_NATS
    if clip is None or _never_got_going(s) or noisy:
        return None  # where nothing is learned, or of one sequence, norms are large anyhow
    low, high = np.quantile(late, [0.1, 0.9])
    floor = float(s.norms.min())
    if floor < CLIP_FLOOR * clip or middle > CLIP_MEDIAN * clip or high > CLIP_BAND * low:
        return None
    return (
        f"the gradient's norm never fell below {floor:.2f} and stays at {low:.2f} to {high:.2f}, "
        f"just above grad_clip = {clip:g}, as when each gradient is added to the clipped last one"
    )


def overfitting(s: Signals) -> str | None:
    """The validation loss rises while the training loss falls."""
    if s.val.size < 3:
        return None
    best = int(np.argmin(s.val))
    rise = float(s.val[-1] - s.val[best])
    before, after = s.train_at(float(s.val_steps[best]) / s.last_step), s.train_at(0.975, 0.025)
    if rise < VAL_RISE_NATS or before - after < TRAIN_FALL_NATS:
        return _stalled(s)
    return (
        f"the validation loss rose from {s.val[best]:.3f} (step {s.val_steps[best]:.0f}) to "
        f"{s.val[-1]:.3f} nats while the training loss fell from {before:.2f} to {after:.2f}"
    )


def _stalled(s: Signals) -> str | None:
    """The validation loss has stopped, the training loss has not."""
    late = s.val_steps >= STALL_FROM * s.last_step
    if late.sum() < 3:
        return None
    first, last = float(s.val[late][0]), float(s.val[-1])
    from_ = float(s.val_steps[late][0])
    before, after = s.train_at(from_ / s.last_step), s.train_at(0.975, 0.025)
    if before - after < STALL_TRAIN_NATS or first - last > STALL_SHARE * (before - after):
        return None
    return (
        f"from step {from_:.0f} on the training loss fell from {before:.2f} to {after:.2f} nats, "
        f"the validation loss only from {first:.3f} to {last:.3f}"
    )


def lr_too_high(s: Signals) -> str | None:
    """The loss diverged (NaN), or rose, or the gradient jumps."""
    if s.facts.diverged:
        return f"{s.facts.failure}{_lr_range(s)}"
    rose = _rise(s)
    if rose is not None:
        return rose
    if s.half_way > EARLY_HALF or _never_got_going(s):
        return None
    jumps = s.norm_jumps
    noisy = data_in_order(s) is not None or batch_too_small(s) is not None
    if jumps is not None and jumps >= RATE_JUMPS and not noisy:
        return (
            f"the gradient's norm jumps by {100 * math.expm1(jumps):.0f} % from point to point "
            f"({s.late_norms.min():.2g} to {s.late_norms.max():.2g}){_lr_range(s)}"
        )
    return None


def _rise(s: Signals) -> str | None:
    """A spike or a divergence."""
    rise = s.train[1:] - np.minimum.accumulate(s.train)[:-1]
    top = int(np.argmax(rise)) + 1
    if rise[top - 1] < max(RISE_NATS, RISE_NOISE * max(s.point_noise_nats, s.wander_nats)):
        return None
    low = int(np.argmin(s.train[:top]))
    return (
        f"the training loss rose from {s.train[low]:.2f} to {s.train[top]:.2f} nats in steps "
        f"{s.steps[low]:.0f} to {s.steps[top]:.0f}{_lr_range(s, s.steps[low], s.steps[top])}"
    )


def _never_got_going(s: Signals) -> bool:
    if s.facts.knows_frequencies:
        return False  # there was less to learn: how slowly it was learned shows it
    end = float(s.smooth[-1])
    return s.start_nats - end < SLOW_DESCENT * s.start_nats


def lr_too_low(s: Signals) -> str | None:
    """The first descent takes long, or was never finished."""
    if _long_warmup(s) is not None:
        return None  # known to be the cause
    if s.train.max() > s.train[0] + RISE_NATS:
        return None  # it did not creep, it went up
    end = float(s.smooth[-1])
    why = "" if s.lr.size else " (a long warm-up looks the same: no learning rate was recorded)"
    if _never_got_going(s):
        return (
            f"the training loss fell only from {s.start_nats:.2f} to {end:.2f} nats in "
            f"{s.last_step:.0f} steps, less than token frequencies alone would bring{why}"
        )
    if s.half_way >= SLOW_HALF + _warmup_share(s) / 2:
        return (
            f"half of the descent (from {s.start_nats:.2f} to {end:.2f} nats) took "
            f"{100 * s.half_way:.0f} % of the steps{why}"
        )
    return None


def _warmup_share(s: Signals) -> float:
    peak = s.peak_lr_step
    if peak is None:
        peak = float(s.facts.warmup_steps or 0)
    return peak / s.planned_steps


def _long_warmup(s: Signals) -> float | None:
    share = _warmup_share(s)
    return share if share >= LONG_WARMUP else None


def warmup_too_long(s: Signals) -> str | None:
    """The learning rate rises during a large part of the run."""
    share = _long_warmup(s)
    if share is None:
        return None
    return (
        f"the learning rate rose during the first {100 * share:.0f} % of the steps; half of the "
        f"descent took {100 * s.half_way:.0f} %"
    )


def data_in_order(s: Signals) -> str | None:
    """The loss follows the order of the data, or varies more than independent sequences would."""
    wander, noise = s.wander, s.noise_nats
    if wander is None or noise is None or _rise(s) is not None:
        return None  # behind a spike the loss varies for another reason
    n = int((s.steps >= LATE * s.last_step).sum())
    if (
        s.wander_nats >= WANDER_NATS
        and wander <= WANDER
        and (2 - wander) * math.sqrt(n) / 2 >= WANDER_ERRORS
    ):
        return (
            f"the training loss wanders by ±{s.wander_nats:.2f} nats around its trend, and "
            f"neighbouring points wander together (von Neumann's ratio {wander:.2f}; 2 if "
            "independent)"
        )
    sequences = s.facts.sequences_per_step
    if not sequences or sequences == 1 or s.point_noise_nats < VISIBLE_NATS:
        return None
    length = (s.facts.tokens_per_step or 0) / sequences or SHORT_SEQUENCE
    usual = SEQUENCE_NATS * math.sqrt(max(1.0, SHORT_SEQUENCE / length))
    if noise * math.sqrt(sequences) >= usual:
        return (
            f"a step's training loss varies by ±{noise:.2f} nats, too much for {sequences} "
            f"independent sequences (±{noise * math.sqrt(sequences):.1f} each; 0.4 to 0.9 is usual)"
        )
    return None


def batch_too_small(s: Signals) -> str | None:
    """One step's loss says little."""
    noise = s.noise_nats
    if noise is None or noise < NOISY_NATS or s.point_noise_nats < VISIBLE_NATS:
        return None
    size = ""
    n = s.facts.sequences_per_step
    if n and s.facts.tokens_per_step:
        sequences = "one sequence" if n == 1 else f"{n} sequences"
        size = f" ({sequences}, {s.facts.tokens_per_step:,} tokens per step)"
    else:
        size = " (unshuffled data may look the same: the batch is not known)"
    return f"a step's training loss varies by ±{noise:.2f} nats around its trend{size}"


def lr_constant(s: Signals) -> str | None:
    """The learning rate at the end is still near its peak."""
    finished = s.last_step >= 0.95 * s.planned_steps
    if s.lr.size < 3 or not finished or _long_warmup(s) is not None or s.lr.max() <= 0:
        return None
    share = float(s.lr[-1] / s.lr.max())
    if share < CONSTANT:
        return None
    return (
        f"the learning rate ended at {s.lr[-1]:.2g}, {100 * share:.0f} % of its peak "
        f"{s.lr.max():.2g}"
    )


RULES: dict[str, Rule] = {
    "leak": leak,
    "grad_not_cleared": grad_not_cleared,
    "data_in_order": data_in_order,
    "overfitting": overfitting,
    "lr_too_high": lr_too_high,
    "lr_too_low": lr_too_low,
    "warmup_too_long": warmup_too_long,
    "batch_too_small": batch_too_small,
    "lr_constant": lr_constant,
}
