"""YAML and strict models: numbers, round trips, and one clear line for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetsweep.config import apply_overrides, dump_yaml, load_yaml, parse, parse_yaml
from budgetsweep.errors import ConfigError
from trainer.config import RunConfig

SEED_YAML = """
output_dir: outputs/GPT-tiny
tokenizer_encoding: gpt2
model_config: {n_embd: 32, n_head: 2, n_positions: 128, n_layer: 2}
device: auto
batch_size: 32
seq_len: 128
num_warmup_steps: 10
num_training_steps: 2000
grad_accumulation_steps: 1
min_lr: 1e-4        # YAML 1.1 reads this as a string: accept it as a number
max_lr: 5e-4
"""


def seed_data() -> dict[str, object]:
    return parse_yaml(SEED_YAML, "seed.yaml")


def test_the_courses_file_works_as_it_is() -> None:
    config = parse(RunConfig, seed_data(), "seed.yaml")
    assert config.min_lr == 1e-4
    assert config.model.n_vocab == 50257
    assert config.steps == 2000
    assert config.total_tokens == 2000 * 32 * 128


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("1e15", 1e15), ("5E3", 5e3), ("-.5", -0.5), ("1_000.5", 1000.5), ("3.", 3.0)],
)
def test_numbers_that_yaml_1_1_takes_for_words_are_numbers(text: str, value: float) -> None:
    assert parse_yaml(f"x: {text}", "t") == {"x": value}


@pytest.mark.parametrize("text", ["e5", "1e", "v1e5", "12-05", "1e5x", "'1e5'", "off", "yes", "No"])
def test_words_stay_words(text: str) -> None:
    assert isinstance(parse_yaml(f"x: {text}", "t")["x"], str)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(min_size=1, max_size=8), plain, min_size=1, max_size=4))
def test_what_is_written_reads_back_the_same(data: dict[str, object]) -> None:
    read = parse_yaml(dump_yaml(data), "round trip")
    assert repr(read) == repr(data)  # which tells -0.0 from 0.0, and 1.0 from 1 and True


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("batch_siz=3", "unknown key 'batch_siz'; did you mean 'batch_size'?"),
        ("model_config.n_hed=2", "unknown key 'model_config.n_hed'; did you mean 'n_head'?"),
        ("data.sorce=x", "did you mean 'source'?"),
        ("batch_size=0", "batch_size = 0"),
        ("batch_size=2.5", "batch_size = 2.5"),
        ("batch_size=true", "batch_size"),
        ("max_lr=.nan", "max_lr"),
        ("max_lr=-1", "max_lr"),
        ("seq_len=129", "seq_len = 129 is longer than n_positions = 128"),
        ("model_config.n_head=3", "n_embd = 32 is not a multiple of n_head = 3"),
        ("min_lr=1.0", "min_lr = 1.0 is above max_lr"),
        ("tokenizer_encoding=gpt3", "expected one of gpt2"),
        ("device=gpu", "device"),
        ("convention=kaplan", "convention"),
        ("model_config=3", "model_config"),
        ("num_training_steps=soon", "num_training_steps"),
    ],
)
def test_each_mistake_is_one_line_that_names_it(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(RunConfig, apply_overrides(seed_data(), [override]), "run.yaml")
    message = str(caught.value)
    assert message.startswith("run.yaml: ")
    assert words in message
    assert "\n" not in message


def test_overrides_leave_the_original_alone_and_make_groups() -> None:
    data = {"a": {"b": 1}}
    assert apply_overrides(data, ["a.b=2", "c.d=1e-3"]) == {"a": {"b": 2}, "c": {"d": 1e-3}}
    assert data == {"a": {"b": 1}}


@pytest.mark.parametrize("override", ["a", "=1", "a..b=1", "a.b.c=1"])
def test_overrides_that_make_no_sense_are_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        apply_overrides({"a": {"b": 1}}, [override])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"- 1\n", "found a list"),
        (b"a: [1\n", "expected YAML"),
        (b"a: 1\na: 2\n", "key 'a' is given twice"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"x: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        (b"{[1]: 2}\n", "unhashable key"),
        (b"[" * 4000, "YAML"),
    ],
)
def test_files_that_are_not_settings_are_refused(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_yaml(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_yaml(tmp_path)
