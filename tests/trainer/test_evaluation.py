"""Validation against brute force, window by window, in float64."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetsweep.errors import ConfigError, DataError
from model.decoder import DecoderLM
from trainer.course import evaluate, sequential_batch_sampler
from trainer.data.shards.tokens import TokenArray
from trainer.evaluation import Validation, perplexity, ratio_estimate, validate

pytestmark = pytest.mark.usefixtures("one_thread")
V, S = 19, 8


def make_model(p_dropout: float = 0.3) -> DecoderLM:
    torch.manual_seed(0)
    model = DecoderLM(V, 8, 2, S, 1, p_dropout).double()
    torch.nn.init.normal_(model.token_embeddings.weight)  # losses that differ between tokens
    return model


def tokens(n: int) -> TokenArray:
    ids = np.random.default_rng(n).integers(V, size=n).astype(np.uint16)
    return TokenArray([ids[: n // 3], ids[n // 3 :]])


def run(
    model: DecoderLM,
    val: TokenArray,
    seq_len: int = S,
    batch_size: int = 3,
    bytes_per_token: float | None = 4.0,
) -> Validation:
    return validate(
        model,
        val,
        seq_len=seq_len,
        batch_size=batch_size,
        device="cpu",
        autocast=nullcontext(),
        bytes_per_token=bytes_per_token,
    )


def brute_force(model: DecoderLM, ids: np.ndarray, seq_len: int) -> list[np.ndarray]:
    """Losses of the predicted tokens in each window, one window at a time, whole logits."""
    model.eval()
    windows = []
    for start in range(0, len(ids), seq_len):
        window = torch.from_numpy(ids[start : start + seq_len].astype(np.int64))
        if len(window) > 1:
            logits = model(window[None])[0, :-1]
            windows.append(F.cross_entropy(logits, window[1:], reduction="none").detach().numpy())
    model.train()
    return windows


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 100), seq_len=st.integers(2, S), batch_size=st.integers(1, 6))
def test_every_predicted_token_weighs_the_same(n: int, seq_len: int, batch_size: int) -> None:
    model, val = make_model(), tokens(n)
    result = run(model, val, seq_len, batch_size)
    windows = brute_force(model, np.asarray(val[0:n]), seq_len)
    losses = np.concatenate(windows)
    assert result.n_tokens == len(losses)
    assert result.loss_nats == pytest.approx(losses.mean(), rel=1e-12)
    assert result.ppl == pytest.approx(math.exp(losses.mean()), rel=1e-12)
    assert result.bits_per_byte == pytest.approx(losses.mean() / math.log(2) / 4.0, rel=1e-12)
    if len(windows) == 1:
        assert result.stderr_nats is None
    elif n % seq_len in (0, 1):  # windows of one size: the ordinary standard error of a mean
        means = [window.mean() for window in windows]
        expected = np.std(means, ddof=1) / math.sqrt(len(means))
        assert result.stderr_nats == pytest.approx(expected, rel=1e-9)


def test_standard_error_of_unequal_windows_agrees_with_the_jackknife() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 30, size=400).astype(float)
    sums = counts * (3.0 + 0.5 * rng.standard_normal(400))
    mean, stderr = ratio_estimate(sums, counts)
    left_out = (sums.sum() - sums) / (counts.sum() - counts)
    jackknife = math.sqrt(399 / 400 * ((left_out - left_out.mean()) ** 2).sum())
    assert mean == pytest.approx(np.average(sums / counts, weights=counts))
    assert stderr == pytest.approx(jackknife, rel=0.02)


def test_standard_error_covers_the_truth() -> None:
    """Over many samples of windows the error is as large as it says."""
    rng = np.random.default_rng(1)
    z = []
    for _ in range(600):
        counts = rng.integers(1, 10, size=50).astype(float)
        sums = counts * (2.0 + rng.standard_normal(50))
        mean, stderr = ratio_estimate(sums, counts)
        assert stderr is not None
        z.append((mean - 2.0) / stderr)
    assert np.std(z) == pytest.approx(1.0, abs=0.12)


def test_of_full_batches_it_is_the_course_evaluation() -> None:
    model, val = make_model(), tokens(2 * 3 * S)
    result = run(model, val, batch_size=3)
    ids = np.asarray(val[0 : len(val)])
    course = evaluate(model, sequential_batch_sampler(ids, "cpu", 3, S))
    assert result.loss_nats == pytest.approx(course["val-loss"], rel=1e-12)
    assert result.ppl == pytest.approx(course["val-perplexity"], rel=1e-12)
    assert result.n_tokens == 2 * 3 * (S - 1)


def test_deterministic_and_without_traces() -> None:
    model, val = make_model(p_dropout=0.5), tokens(50)
    state = torch.get_rng_state()
    first = run(model, val)
    assert run(model, val) == first
    assert model.training
    assert run(model.eval(), val) == first
    assert not model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_the_mode_comes_back_after_an_error() -> None:
    model = make_model()
    with pytest.raises(ValueError, match="n_positions"):
        run(model, tokens(50), seq_len=S + 2)
    assert model.training


def test_bf16_autocast_is_close() -> None:
    model, val = make_model().float(), tokens(99)
    exact = run(model, val)
    low = validate(
        model,
        val,
        seq_len=S,
        batch_size=4,
        device="cpu",
        autocast=torch.autocast("cpu", dtype=torch.bfloat16),
        bytes_per_token=None,
    )
    assert low.bits_per_byte is None
    assert 0 < abs(low.loss_nats - exact.loss_nats) < 1e-2


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_tokens(n: int) -> None:
    with pytest.raises(DataError, match=f"^{n} validation tokens are too few"):
        run(make_model(), tokens(n))


def test_windows_of_one_token_predict_nothing() -> None:
    with pytest.raises(ConfigError, match=r"seq_len = 1: .* at least 2"):
        run(make_model(), tokens(20), seq_len=1)


def test_a_broken_model_gives_a_loss_that_is_not_finite() -> None:
    model = make_model()
    with torch.no_grad():
        model.ln.weight[0] = float("nan")
    result = run(model, tokens(40))
    assert math.isnan(result.loss_nats)
    assert math.isnan(result.ppl)


def test_perplexity_of_a_huge_loss_is_infinite() -> None:
    assert perplexity(1000.0) == math.inf
    assert perplexity(math.inf) == math.inf
    assert math.isnan(perplexity(math.nan))
    assert perplexity(math.log(50.0)) == pytest.approx(50.0)
