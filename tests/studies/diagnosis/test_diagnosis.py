"""Verdicts: on runs that are really broken, and on curves whose truth is known by formula."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.broken_runs import KINDS, RecordedRun, record
from benchmarks.diagnosis import judge
from studies.diagnosis.curves import COLUMNS, Curve
from studies.diagnosis.diagnose import diagnose
from studies.diagnosis.facts import CurveFacts
from studies.diagnosis.steps import steps_needed
from studies.diagnosis.verdicts import HEALTHY, NAMES
from tests.support.curves import STEPS, curve, sound_loss
from trainer.data.shards.tokens import TokenArray, TokenData
from trainer.data.sources import open_source

FACTS = CurveFacts(
    num_steps=1000, warmup_steps=50, sequences_per_step=16,
    tokens_per_step=512, grad_clip=1.0, n_vocab=257, bytes_per_token=1.0,
)  # fmt: skip
NO_NOISE = CurveFacts()


def names(run: Curve, facts: CurveFacts = FACTS) -> list[str]:
    return [verdict.name for verdict in diagnose(run, facts).verdicts]


# ── really broken ────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def library() -> TokenData:
    """The first 3.6 MB of Python's standard library, as bytes."""
    text = b"".join(r.text.encode() for r in open_source("demo").records() if r.text)[:3_600_000]
    ids = np.frombuffer(text, np.uint8).astype(np.int64)
    return TokenData(
        train=TokenArray.from_arrays([ids[:3_000_000]]),
        val=TokenArray.from_arrays([ids[3_000_000:]]),
        tokenizer_encoding="bytes", n_vocab=257, eot=256, bytes_per_token=1.0,
        data_checksum="train", val_checksum="val", description="a library", folder=Path(),
        exhausted=True,
    )  # fmt: skip


def small_run(kind: str) -> RecordedRun:
    """About two seconds."""
    width, length, steps = (32, 16, 450) if kind == "leak" else (24, 24, 170)
    changes: dict[str, Any] = {"max_lr": 1e-2} if kind == "leak" else {}
    return record(
        kind, 2, library(),
        model_config={"n_embd": width, "n_head": 2, "n_layer": 1, "n_positions": length},
        seq_len=length, num_training_steps=300 if kind == "overfitting" else steps,
        num_reports=60, num_evals=8, **changes,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_broken_in_one_way_gets_that_verdict(kind: str) -> None:
    # Claim: trained by the project's own trainer, broken from outside, the gravest verdict is
    # right. One seed, for speed; benchmarks/diagnosis.py measures the rates.
    found = judge(small_run(kind))
    assert found.verdicts[0].name == kind, found.verdicts


@pytest.mark.usefixtures("one_thread")
def test_what_is_broken_is_restored_afterwards() -> None:
    run = small_run("healthy")
    assert names_of(run) == [HEALTHY]
    norms = [point["grad_norm"] for point in run.points]
    assert min(n for n in norms if n is not None) < 0.8  # the optimiser clears again


def names_of(run: RecordedRun) -> list[str]:
    return [verdict.name for verdict in judge(run).verdicts]


# ── known by formula ─────────────────────────────────────────────────────────────────────────


@given(
    noise=st.floats(0.0, 0.06),
    seed=st.integers(0, 2**16),
    exponent=st.floats(0.3, 1.0),
    floor=st.floats(1.2, 2.5),
)
def test_a_power_law_with_noise_is_healthy(
    noise: float, seed: int, exponent: float, floor: float
) -> None:
    loss = floor + (5.55 - floor) / (1 + STEPS / 20) ** exponent
    rng = np.random.default_rng(seed)
    run = curve(
        train_loss_nats=loss + noise * rng.normal(size=STEPS.size),
        val_loss_nats=np.where(STEPS % 100 == 0, loss, np.nan),
    )
    assert names(run) == [HEALTHY]


def test_a_diverged_loss_is_too_high_a_rate_however_short_the_curve() -> None:
    facts = CurveFacts(failure="training loss became nan at step 7")
    assert names(Curve.of_rows([]), facts) == ["lr_too_high"]
    other = CurveFacts(failure="out of memory after step 3: no memory left")
    assert names(Curve.of_rows([]), other) == []


def test_a_spike_is_told_with_its_steps_and_rate() -> None:
    loss = sound_loss()
    loss[12:15] += [1.0, 3.0, 1.5]
    found = diagnose(curve(train_loss_nats=loss), FACTS)
    assert [v.name for v in found.verdicts] == ["lr_too_high"]
    low, high = loss[:13].min(), loss[13]
    assert (
        f"rose from {low:.2f} to {high:.2f} nats in steps 120 to 140" in found.verdicts[0].evidence
    )
    assert "while the learning rate was up to 0.003, its peak" in found.verdicts[0].evidence


def test_noise_alone_is_no_spike() -> None:
    assert "lr_too_high" not in names(curve(noise=0.3))


def test_a_jumping_gradient_norm() -> None:
    rng = np.random.default_rng(1)
    jumping = 0.4 * np.exp(0.6 * rng.normal(size=STEPS.size))
    found = diagnose(curve(grad_norm=jumping), FACTS)
    assert [v.name for v in found.verdicts] == ["lr_too_high"]
    assert "norm jumps by" in found.verdicts[0].evidence


def test_a_slow_descent_is_too_low_a_rate_and_with_a_long_warmup_is_that() -> None:
    slow = 5.5 - 3.0 * STEPS / 1000
    assert names(curve(train_loss_nats=slow, val_loss_nats=None)) == ["lr_too_low"]
    rising = curve(train_loss_nats=slow, val_loss_nats=None, lr=3e-3 * STEPS / 1000)
    assert names(rising, CurveFacts(num_steps=1000, n_vocab=257)) == ["warmup_too_long"]
    unknown = diagnose(curve(train_loss_nats=slow, val_loss_nats=None, lr=None), NO_NOISE)
    assert [v.name for v in unknown.verdicts] == ["lr_too_low"]
    assert "a long warm-up looks the same" in unknown.verdicts[0].evidence


def test_a_loss_that_hardly_moved_is_too_low_a_rate_not_an_uncleared_gradient() -> None:
    loss = 5.5 - 0.4 * STEPS / 1000
    norms = np.full(STEPS.size, 1.2)  # above grad_clip throughout, for nothing is learned
    run = curve(train_loss_nats=loss, val_loss_nats=None, grad_norm=norms)
    assert names(run) == ["lr_too_low"]


def test_a_head_that_begins_with_the_frequencies_has_less_to_learn() -> None:
    knowing = dataclasses.replace(FACTS, knows_frequencies=True)
    small = 2.5 + 0.8 / (1.0 + STEPS / 20.0) ** 0.6  # from 3.3 nats, the frequencies of bytes
    run = curve(train_loss_nats=small, val_loss_nats=None)
    assert names(run, knowing) == ["healthy"]
    assert "fell from 3.1" in diagnose(run, knowing).verdicts[0].evidence
    slow = curve(train_loss_nats=3.3 - 0.4 * STEPS / 1000, val_loss_nats=None)
    assert names(slow, knowing) == ["lr_too_low"]
    shape = {"n_embd": 8, "n_head": 1, "n_positions": 8, "n_layer": 1}
    config = {"model_config": shape, "batch_size": 1, "seq_len": 8, "max_lr": 0.1}
    assert CurveFacts.of_config({**config, "recipe": "modern"}).knows_frequencies
    assert not CurveFacts.of_config(config).knows_frequencies


def test_a_gradient_that_piles_up() -> None:
    assert names(curve(grad_norm=0.5 * STEPS)) == ["grad_not_cleared"]
    rng = np.random.default_rng(0)
    clipped = 1.25 + 0.1 * rng.normal(size=STEPS.size)
    assert names(curve(grad_norm=clipped)) == ["grad_not_cleared"]
    unclipped = CurveFacts(num_steps=1000, n_vocab=257, sequences_per_step=16)
    assert names(curve(grad_norm=clipped), unclipped) == [HEALTHY]


def test_overfitting_needs_both_losses_to_part() -> None:
    train = 1.2 + 4.0 / (1 + STEPS / 20) ** 0.6 - 0.8 * STEPS / 1000
    rising = np.where(STEPS % 100 == 0, sound_loss() + 0.5 * STEPS / 1000, np.nan)
    assert names(curve(train_loss_nats=train, val_loss_nats=rising)) == ["overfitting"]
    assert names(curve(val_loss_nats=rising, train_loss_nats=np.nan_to_num(
        np.interp(STEPS, STEPS[9::10], rising[9::10])))) != ["overfitting"]  # fmt: skip
    stalled = np.where(STEPS % 100 == 0, np.maximum(sound_loss(), sound_loss()[35]), np.nan)
    assert names(curve(train_loss_nats=train, val_loss_nats=stalled)) == ["overfitting"]


@pytest.mark.parametrize(
    ("tokens", "bytes_per_token", "val", "leaks"),
    [
        (5e5, 1.0, 0.9, False),  # 1.30 bits per byte after half a megabyte
        (5e5, 1.0, 0.8, True),  # 1.15
        (1e8, 1.0, 0.62, False),
        (1e8, 1.0, 0.55, True),
        (1e10, 4.4, 2.0, False),  # 0.66 bits per byte: a large model on web text
        (1e10, 4.4, 1.7, True),
    ],
)
def test_the_floor_is_in_bits_per_byte_and_falls_with_the_data_seen(
    tokens: float, bytes_per_token: float, val: float, leaks: bool
) -> None:
    loss = np.maximum(sound_loss() * val / sound_loss()[-1], val)
    run = curve(
        train_loss_nats=loss, tokens=STEPS / 1000 * tokens,
        val_loss_nats=np.where(STEPS % 100 == 0, loss, np.nan),
    )  # fmt: skip
    facts = CurveFacts(num_steps=1000, n_vocab=50257, bytes_per_token=bytes_per_token)
    assert ("leak" in names(run, facts)) == leaks


def test_a_memorised_training_set_is_no_leak() -> None:
    train = 0.1 + 5.4 / (1 + STEPS / 60) ** 1.5
    val = np.where(STEPS % 100 == 0, sound_loss() + STEPS / 1000, np.nan)
    assert names(curve(train_loss_nats=train, val_loss_nats=val)) == ["overfitting"]


def test_text_in_order_wanders_and_is_told_from_independent_noise() -> None:
    rng = np.random.default_rng(3)
    slow = np.convolve(rng.normal(size=STEPS.size + 9), np.ones(10) / 10**0.5, "valid")
    run = curve(train_loss_nats=sound_loss() + 0.15 * slow)
    assert names(run) == ["data_in_order"]
    white = curve(noise=0.15)
    assert names(white, CurveFacts(num_steps=1000, sequences_per_step=2)) == ["batch_too_small"]
    assert names(white, CurveFacts(num_steps=1000, sequences_per_step=32)) == ["data_in_order"]


def test_a_constant_rate_is_told_once_the_run_is_over() -> None:
    constant = np.where(STEPS < 50, 3e-3 * STEPS / 50, 3e-3)
    assert names(curve(lr=constant)) == ["lr_constant"]
    halfway = CurveFacts(num_steps=2000, n_vocab=257, sequences_per_step=16)
    assert names(curve(lr=constant), halfway) == [HEALTHY]


@given(
    rows=st.lists(
        st.tuples(*[st.one_of(st.none(), st.floats(-1e6, 1e6)) for _ in COLUMNS]), max_size=60
    ),
    n_vocab=st.sampled_from([None, 2, 257, 50257]),
    grad_clip=st.sampled_from([None, 1.0]),
)
def test_any_curve_gets_an_answer(
    rows: list[tuple[float | None, ...]], n_vocab: int | None, grad_clip: float | None
) -> None:
    # Claim: no exception or warning on nonsense; the verdicts keep their order, healthy stands
    # alone, and only a curve of too few losses has none.
    numbered = [(float(i + 1), *row[1:]) for i, row in enumerate(rows)]
    found = diagnose(Curve.of_rows(numbered), CurveFacts(n_vocab=n_vocab, grad_clip=grad_clip))
    order = [NAMES.index(verdict.name) for verdict in found.verdicts]
    assert order == sorted(set(order))
    assert HEALTHY not in [v.name for v in found.verdicts] or len(found.verdicts) == 1
    assert bool(found.verdicts) == (found.n_points >= 12)
    assert all(verdict.evidence and verdict.cure for verdict in found.verdicts)


def test_a_curve_of_every_step_gets_the_verdict_of_the_same_curve_thinned() -> None:
    steps = np.arange(1, 5001, dtype=np.float64)
    rng = np.random.default_rng(0)
    rows = [
        (step, step * 512, None, loss, None, 1e-3, norm)
        for step, loss, norm in zip(
            steps, 5.5 - 3 * steps / 5000 + 0.02 * rng.normal(size=5000), np.ones(5000), strict=True
        )
    ]
    whole = Curve.of_rows(rows)
    assert len(whole.thinned(200)) == 200
    assert whole.thinned(200).train_loss_nats.mean() == pytest.approx(whole.train_loss_nats.mean())
    found = diagnose(whole)
    assert found.n_points == 200
    assert "lr_too_low" in [v.name for v in found.verdicts]


# ── how many steps ───────────────────────────────────────────────────────────────────────────


def test_steps_suffice_from_where_the_loss_stays_close() -> None:
    def law(t: Any) -> Any:
        return 2.0 + 8.0 * t**-0.6

    needed = steps_needed(curve(val_loss_nats=np.where(STEPS % 50 == 0, law(STEPS), np.nan)))
    assert needed is not None
    above = [s for s in STEPS[STEPS % 50 == 0] if law(s) > law(1000.0) + 0.02]
    assert needed.enough_step == above[-1] + 50


def test_two_losses_say_nothing_about_steps() -> None:
    assert (
        steps_needed(Curve.of_rows([(1, 1, 1, 5.0, 5.0, 1, 1), (2, 2, 2, 4.0, 4.0, 1, 1)])) is None
    )
