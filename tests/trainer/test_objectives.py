"""Encoder and encoder-decoder trained like the decoder: loss, resumption, charge, memory, sweep."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from budgetsweep.config import parse
from budgetsweep.constraint import Admitted, Limits, Rejected, admit, epochs
from budgetsweep.errors import ConfigError, DataError, Reason
from model.encoder import EncoderLM
from model.encoder_decoder import EncoderDecoderLM
from tests.support.tiny_runs import assert_same_run, drive, tiny_config, tiny_data
from trainer.config import RunConfig
from trainer.data.pairs import PairBatch
from trainer.data.shards.tokens import TokenArray, TokenData
from trainer.objectives import MaskedTokens, TargetOfSource, objective_for
from trainer.throughput import measure_tokens_per_second

CPU = torch.device("cpu")
EOT = 256
PAIR_SHAPE = {
    "n_embd": 16, "n_head": 2, "n_source_positions": 12, "n_target_positions": 8,
    "n_encoder_layer": 1, "n_decoder_layer": 1, "p_dropout": 0.1,
}  # fmt: skip


def encoder_config(**changes: Any) -> RunConfig:
    return tiny_config(architecture="encoder", **changes)


def pair_config(shape: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    data = tiny_config().to_dict()
    data |= {"architecture": "encoder-decoder", "source_len": 12, "seq_len": 8} | changes
    data["model_config"] = PAIR_SHAPE | (shape or {})
    return RunConfig.model_validate(data)


def pair_data(n: int = 120, n_val: int = 20) -> TokenData:
    """Targets that repeat their source: what only an encoder's memory can tell."""
    rng = np.random.default_rng(0)

    def stream(count: int) -> TokenArray:
        parts = []
        for _ in range(count):
            source = rng.integers(0, 4, rng.integers(1, 15))
            parts += [source, [EOT], source[: rng.integers(1, 10)], [EOT]]
        return TokenArray.from_arrays([np.concatenate(parts)])

    return dataclasses.replace(
        tiny_data(), train=stream(n), val=stream(n_val), pairs=True, bytes_per_token=None
    )


ARCHITECTURES = {
    "encoder": (encoder_config, tiny_data),
    "encoder-decoder": (pair_config, pair_data),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_run_goes_on_bit_for_bit(architecture: str, tmp_path: Path) -> None:
    config_of, data_of = ARCHITECTURES[architecture]
    config, data = config_of(), data_of()
    whole, _ = drive(config, data, tmp_path / "whole")
    assert whole.status == "complete"
    stopped, _ = drive(config, data, tmp_path / "parts", "interrupt", at_step=9)
    assert stopped.status == "interrupted"
    drive(config, data, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    saved = parse(RunConfig, config.to_dict(), "again")
    assert saved == config
    assert saved.architecture == architecture


@pytest.mark.slow
def test_the_encoder_learns_from_both_sides(tmp_path: Path) -> None:
    """The masked token lies between its neighbours: at most 7 of 257 values fit."""
    config = encoder_config(
        num_training_steps=300, grad_accumulation_steps=1, batch_size=32, max_lr=2e-2,
        shape={"n_embd": 32, "p_dropout": 0.0},
    )  # fmt: skip
    result, _ = drive(config, tiny_data(40_000, 2000), tmp_path)
    assert result.val_loss_nats is not None
    assert result.val_loss_nats < 4.5


def test_every_window_has_the_same_number_of_masked_tokens() -> None:
    config = encoder_config(masked_fraction=0.3)
    objective = MaskedTokens(config, CPU)
    objective.read(tiny_data())
    batch = objective.batch(3, 1)
    assert batch.chosen.sum(dim=1).tolist() == [round(0.3 * 16)] * 4
    assert batch.inputs.max() <= config.mask_id == 257 == config.model.n_vocab - 1
    again = objective.batch(3, 1)
    other = objective.batch(3, 0)
    assert torch.equal(batch.inputs, again.inputs)
    assert not torch.equal(batch.chosen, other.chosen)


def test_the_validation_of_an_encoder_is_the_same_for_every_run_and_batch_size() -> None:
    torch.manual_seed(0)
    results = []
    for changes in ({}, {"seed": 7, "batch_size": 300}):
        objective = MaskedTokens(encoder_config(**changes), CPU)
        objective.read(tiny_data())
        if not results:
            model = objective.build_model()
        results.append(objective.validate(model, torch.autocast("cpu", enabled=False)))
    assert results[0].loss_nats == pytest.approx(results[1].loss_nats, rel=1e-5)
    assert results[0].n_tokens == results[1].n_tokens == 25 * 2
    assert results[0].bits_per_byte is None


def test_the_loss_of_pairs_is_that_of_the_model_with_all_masks() -> None:
    objective = TargetOfSource(pair_config({"p_dropout": 0.0}), CPU)
    data = pair_data()
    objective.read(data)
    model = objective.build_model()
    batch = objective.batch(0, 0)
    assert (batch.target_mask == 0).any(), "no padding: nothing is tested"
    # The decoder never reads the last token of a full row, which has no position of its own.
    for part in (batch, PairBatch(*(tensor[:, :8] for tensor in batch))):
        ours = objective.loss(model.hidden, model, part)
        hidden = model.hidden(
            part.source_ids, part.target_ids[:, :-1], part.source_mask, part.target_mask[:, :-1]
        )
        counts = part.target_mask[:, 1:] != 0
        expected = torch.nn.functional.cross_entropy(
            (hidden @ model.head_weight.T)[counts], part.target_ids[:, 1:][counts]
        )
        assert ours.item() == pytest.approx(expected.item(), rel=1e-5)


def test_bits_per_byte_of_pairs_are_of_the_target_text() -> None:
    data = dataclasses.replace(pair_data(), token_bytes=np.array([2] * 256 + [0], np.uint16))
    objective = TargetOfSource(pair_config(), CPU)
    objective.read(data)
    result = objective.validate(objective.build_model(), torch.autocast("cpu", enabled=False))
    lengths = [len(objective.val.pair(i)[1]) for i in range(len(objective.val))]
    n_bytes = sum(2 * min(length, 8) for length in lengths)
    n_tokens = sum(min(length + 1, 8) for length in lengths)
    assert result.n_tokens == n_tokens
    assert result.bits_per_byte == pytest.approx(
        result.loss_nats / math.log(2) * n_tokens / n_bytes
    )


@st.composite
def filled_configs(draw: st.DrawFn) -> RunConfig:
    """Small encoders and encoder-decoders whose masked or padded parts are all computed."""
    n_head = draw(st.sampled_from([1, 2]))
    width = n_head * draw(st.sampled_from([4, 8]))
    length = draw(st.integers(2, 9))
    shape = {"n_embd": width, "n_head": n_head, "p_dropout": 0.0}
    batch_size = draw(st.integers(1, 3))
    if draw(st.booleans()):
        shape |= {"n_positions": length, "n_layer": draw(st.integers(1, 2))}
        return encoder_config(
            shape=shape, seq_len=length, batch_size=batch_size,
            masked_fraction=draw(st.floats(0.05, 1.0)),
        )  # fmt: skip
    source_len = draw(st.integers(1, 9))
    shape |= {"n_source_positions": source_len, "n_target_positions": length}
    shape |= {"n_encoder_layer": draw(st.integers(1, 2)), "n_decoder_layer": 1}
    return pair_config(shape, seq_len=length, source_len=source_len, batch_size=batch_size)


@settings(max_examples=60)
@given(config=filled_configs())
def test_a_step_costs_exactly_what_is_charged(config: RunConfig) -> None:
    objective = objective_for(config, CPU)
    model = objective.build_model()
    assert config.n_params == sum(p.numel() for p in model.parameters())
    batch = objective.random_batch(config.batch_size)
    math_only = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with math_only, FlopCounterMode(display=False) as counter:
        hidden = (
            model.hidden(batch.inputs)[batch.chosen]
            if isinstance(model, EncoderLM)
            else model.hidden(batch.source_ids, batch.target_ids[:, :-1], batch.source_mask)
        )
        (hidden @ model.head_weight.T).sum().backward()
    per_micro_batch = config.flops_per_step("matmul") // config.grad_accumulation_steps
    assert counter.get_total_flops() == per_micro_batch
    assert isinstance(model, EncoderLM | EncoderDecoderLM)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_meter_stops_every_architecture_at_its_budget(
    architecture: str, tmp_path: Path
) -> None:
    config_of, data_of = ARCHITECTURES[architecture]
    budget = 5 * config_of().flops_per_step("nanogpt") + 17
    answer = admit(
        config_of(num_training_steps="fill", num_warmup_steps=1),
        Limits(budget, data=data_of().facts()),
    )
    assert isinstance(answer, Admitted)
    assert answer.config.steps == 5
    result, events = drive(answer.config, data_of(), tmp_path)
    assert result.steps_executed == 5
    assert answer.charge_flops == 5 * config_of().flops_per_step("nanogpt") <= budget
    assert events[-1].flops == answer.charge_flops  # type: ignore[union-attr]
    assert measure_tokens_per_second(answer.config, 0.02) > 0


def test_the_constraint_counts_pairs() -> None:
    limits = Limits(10**12, data=pair_data(120, 20).facts())
    assert limits.data is not None
    assert (limits.data.train_pairs, limits.data.val_pairs) == (120, 20)
    config = pair_config(num_training_steps=60)  # 8 pairs a step: four passes
    assert epochs(config, limits.data) == 4.0
    assert isinstance(admit(config, limits), Admitted)
    refused = admit(pair_config(num_training_steps=61), limits)
    assert isinstance(refused, Rejected)
    assert refused.reason == Reason.TOO_MANY_EPOCHS
    assert "488 pairs are 4.07 passes over the 120 training pairs" in refused.detail
    few = admit(config, Limits(10**12, data=pair_data(120, 7).facts()))
    assert isinstance(few, Rejected)
    assert few.reason == Reason.TOO_LITTLE_VALIDATION_DATA
    long = admit(pair_config().to_dict() | {"source_len": 13}, limits)
    assert isinstance(long, Rejected)
    assert long.reason == Reason.INVALID_SHAPE


def test_running_text_is_refused_for_pairs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a random walk: running text, but an encoder-decoder"):
        drive(pair_config(), tiny_data(), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source_len": 3}, "source_len: only an encoder-decoder has sources"),
        ({"masked_fraction": 0.2}, "masked_fraction: only an encoder"),
        ({"architecture": "encoder-decoder"}, "the encoder-decoder has the sizes n_decoder_layer"),
        ({"architecture": "decoders"}, "architecture = 'decoders'"),
        ({"model_config": PAIR_SHAPE}, "only an encoder-decoder has these"),
        (
            {"architecture": "encoder-decoder", "model_config": PAIR_SHAPE, "seq_len": 8},
            "an encoder-decoder needs source_len",
        ),
        (
            {"architecture": "encoder-decoder", "seq_len": 8, "source_len": 8,
             "model_config": {**PAIR_SHAPE, "n_encodr_layer": 2}},
            "unknown key 'model_config.n_encodr_layer'; did you mean 'n_encoder_layer'?",
        ),
        (
            {"architecture": "encoder", "model_config": tiny_config().model.model_dump()},
            "n_vocab = 257 is smaller than the 258 ids of tokenizer bytes and the mask",
        ),
    ],
)  # fmt: skip
def test_settings_of_another_architecture_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(RunConfig, tiny_config().to_dict() | changes, "run.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "<" not in str(caught.value)


def test_the_courses_file_is_unchanged_by_the_architecture() -> None:
    assert "architecture" not in tiny_config().to_dict()
    assert "source_len" not in tiny_config().to_dict()
