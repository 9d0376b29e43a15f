"""Models in other formats: `transformers` computes the same logits, and ours come back."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from budgetsweep.config import dump_yaml, load_yaml
from budgetsweep.errors import CheckpointError, ConfigError
from model.decoder import DecoderLM
from tests.support.comparing import ALL_OPTIONS, EACH_AND_ALL, named
from tests.support.reference_course import CourseLM
from tests.support.tiny_runs import tiny_config
from trainer.export import formats
from trainer.export.formats import Format, convert, open_model

pytestmark = pytest.mark.usefixtures("one_thread")
V, D, H, P, L = 31, 12, 3, 7, 2


@pytest.fixture
def hf(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`transformers`, quiet and without a network; loaded by the tests that need it (seconds)."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = importlib.import_module("transformers")
    transformers.utils.logging.disable_progress_bar()
    return transformers


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A model.pt of the course alone in its folder."""
    path = tmp_path / "bare" / "model.pt"
    path.parent.mkdir()
    torch.save(CourseLM(V, D, H, P, L).state_dict(), path)
    return path


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run's folder: model.pt and the whole config.yaml."""
    return write_run(tmp_path / "run", p_dropout=0.25)


def write_run(folder: Path, **shape: Any) -> Path:
    folder.mkdir()
    config = tiny_config(shape=shape)
    model = DecoderLM.from_config(config.model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    if model.head_bias is not None:
        model.head_bias.normal_()
    torch.save(model.state_dict(), folder / "model.pt")
    (folder / "config.yaml").write_text(dump_yaml(config.to_dict()))
    return folder


def theirs(hf: Any, folder: Path) -> torch.nn.Module:
    model, info = hf.GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.mark.slow
@torch.no_grad()
def test_transformers_gives_the_same_logits(hf: Any, bare: Path, tmp_path: Path) -> None:
    convert(open_model(bare), "gpt2", tmp_path / "gpt2")
    gpt2 = theirs(hf, tmp_path / "gpt2")
    course = CourseLM(V, D, H, P, L).eval()
    ids = torch.randint(V, (5, P))
    expected = course(ids)
    assert expected.std() > 0.5
    torch.testing.assert_close(gpt2(ids).logits, expected, rtol=0, atol=1e-5)
    exact = course.double()(ids)
    torch.testing.assert_close(gpt2.double()(ids).logits, exact, rtol=0, atol=1e-11)


@pytest.mark.parametrize("to", ["safetensors", "pt"])
@pytest.mark.parametrize("source", ["bare", "run_dir"])
def test_there_and_back_changes_no_bit(
    tmp_path: Path, to: Format, source: str, request: pytest.FixtureRequest
) -> None:
    first = open_model(request.getfixturevalue(source))
    files = convert(first, to, tmp_path / "deep" / "out")
    assert sorted(files) == sorted((tmp_path / "deep" / "out").iterdir())
    assert "config.yaml" in [file.name for file in files]
    second = open_model(tmp_path / "deep" / "out")
    convert(second, "pt", tmp_path / "back")
    last = open_model(tmp_path / "back")
    for other in (second, last):
        assert other.shape == first.shape
        assert other.config == first.config
        assert other.tokenizer == first.tokenizer
        for name, tensor in first.model.state_dict().items():
            assert torch.equal(other.model.state_dict()[name], tensor), name
    assert [p.name for p in tmp_path.rglob(".*")] == []


def test_safetensors_have_our_names_once(run_dir: Path, tmp_path: Path) -> None:
    convert(open_model(run_dir), "safetensors", tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    assert tensors.keys() == torch.load(run_dir / "model.pt", weights_only=True).keys()
    shape = open_model(run_dir).shape
    assert shape.p_dropout == 0.25
    DecoderLM.from_config(shape).load_state_dict(tensors)
    # Without its config.yaml the shape is read off the tensors.
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(file.read_bytes())
    assert open_model(alone).shape == shape.model_copy(update={"p_dropout": 0.1})


def test_what_gpt2s_config_says(hf: Any, run_dir: Path, tmp_path: Path) -> None:
    convert(open_model(run_dir), "gpt2", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["activation_function"] == "gelu"
    assert config["layer_norm_epsilon"] == torch.nn.LayerNorm(1).eps
    assert config["n_inner"] == 64
    assert config["tie_word_embeddings"] is True
    assert config["bos_token_id"] == config["eos_token_id"] == 256  # of the tokenizer `bytes`
    assert {config[f"{part}_pdrop"] for part in ("resid", "embd", "attn")} == {0.25}
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight" not in tensors
    assert sum(t.numel() for t in tensors.values()) == sum(
        p.numel() for p in open_model(run_dir).model.parameters()
    )
    known = hf.GPT2Config().to_dict()
    assert config.keys() - known.keys() <= {"torch_dtype"}


def test_a_gpt2_is_not_read_back(run_dir: Path, tmp_path: Path) -> None:
    convert(open_model(run_dir), "gpt2", tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"does not fit the model \(no token_embeddings"):
        open_model(tmp_path / "out")


def test_without_a_tokenizer_there_are_no_special_ids(bare: Path, tmp_path: Path) -> None:
    convert(open_model(bare), "gpt2", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["bos_token_id"] is None
    assert config["eos_token_id"] is None
    assert load_yaml(tmp_path / "out" / "config.yaml").keys() == {"model_config"}


@torch.no_grad()
def test_dropout_sits_where_gpt2s_does(hf: Any, run_dir: Path, tmp_path: Path) -> None:
    """In training the outputs have the same mean and spread, not only the same weights."""
    convert(open_model(run_dir), "gpt2", tmp_path / "gpt2")
    ids = torch.randint(257, (1, 4)).expand(6000, 4)
    torch.manual_seed(0)
    ours = open_model(run_dir).model.train()(ids)[:, -1]
    gpt2 = theirs(hf, tmp_path / "gpt2").train()(ids).logits[:, -1]
    standard_error = ours.std(0) / len(ids) ** 0.5
    assert ((ours.mean(0) - gpt2.mean(0)).abs() / standard_error).max() < 7.0
    torch.testing.assert_close(gpt2.std(0), ours.std(0), rtol=0.1, atol=0)


def test_nothing_is_ever_replaced(run_dir: Path, tmp_path: Path) -> None:
    loaded = open_model(run_dir)
    before = {p: p.read_bytes() for p in run_dir.iterdir()}
    for target in (run_dir, run_dir / "model.pt"):
        with pytest.raises(ConfigError, match="exists already; give a new or empty folder"):
            convert(loaded, "gpt2", target)
    assert {p: p.read_bytes() for p in run_dir.iterdir()} == before
    (tmp_path / "empty").mkdir()
    convert(loaded, "pt", tmp_path / "empty")
    assert open_model(tmp_path / "empty").shape == loaded.shape


def test_a_full_disk_leaves_nothing(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    loaded = open_model(run_dir)
    monkeypatch.setattr(formats, "_write_safetensors", no_room)
    with pytest.raises(CheckpointError, match=r"out: cannot be written \(No space left on device"):
        convert(loaded, "gpt2", tmp_path / "new" / "out")
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(CheckpointError, match=r"cannot be written \((Not a dir|File exists)"):
        convert(loaded, "pt", run_dir / "model.pt" / "out")


def test_what_is_said_must_agree(run_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"--n-head 4: .* has n_head = 2"):
        open_model(run_dir, n_head=4)
    with pytest.raises(ConfigError, match="the model was trained with bytes"):
        open_model(run_dir, tokenizer="gpt2")
    assert open_model(run_dir, n_head=2, tokenizer="bytes").tokenizer == "bytes"


# options of the decoder


@torch.no_grad()
@pytest.mark.parametrize("to", ["safetensors", "pt"])
@pytest.mark.parametrize("options", EACH_AND_ALL, ids=named)
def test_a_model_with_options_comes_back_with_equal_logits(
    tmp_path: Path, options: dict[str, Any], to: Format
) -> None:
    first = open_model(write_run(tmp_path / "run", **options))
    assert first.shape.options() == options
    convert(first, to, tmp_path / "out")
    ids = torch.randint(257, (3, 16))
    expected = first.model.eval()(ids)
    again = open_model(tmp_path / "out")
    assert again.shape == first.shape
    assert torch.equal(again.model.eval()(ids), expected)
    # Described by its shape alone, without the run, it is the same too.
    config = {"model_config": first.shape.model_dump(mode="json")}
    (tmp_path / "run" / "config.yaml").write_text(dump_yaml(config))
    loaded = open_model(tmp_path / "run")
    assert loaded.config is None
    assert torch.equal(loaded.model.eval()(ids), expected)


@pytest.mark.parametrize("options", EACH_AND_ALL, ids=named)
def test_gpt2s_format_refuses_what_it_cannot_express(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    loaded = open_model(write_run(tmp_path / "run", **options))
    if options == {"zero_init": True}:  # how training began: GPT-2 need not know
        convert(loaded, "gpt2", tmp_path / "new" / "gpt2")
        return
    with pytest.raises(ConfigError) as caught:
        convert(loaded, "gpt2", tmp_path / "new" / "gpt2")
    for name, value in options.items():
        said = f"{name}: {str(value).lower()}" in str(caught.value)
        assert said is (name != "zero_init")
    assert str(caught.value).startswith(f"{loaded.path}: GPT-2's format cannot express ")
    assert str(caught.value).endswith(": convert to safetensors or pt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "sign"),
    [
        (ALL_OPTIONS, r"no position_embeddings\.weight"),
        ({"positions": "rope"}, r"no position_embeddings\.weight"),
        ({"norm": "rms"}, r"no ln\.weight"),
        ({"bias": False}, r"no blocks\.0\.mha\.proj\.bias"),
        ({"head_bias": "unigram"}, "head_bias"),
    ],
    ids=["all", "positions", "norm", "bias", "head_bias"],
)
def test_bare_weights_with_options_ask_for_their_config(
    tmp_path: Path, options: dict[str, Any], sign: str
) -> None:
    folder = write_run(tmp_path / "run", **options)
    config = (folder / "config.yaml").read_bytes()
    (folder / "config.yaml").unlink()
    save_file(torch.load(folder / "model.pt", weights_only=True), tmp_path / "a.safetensors")
    for path in (folder, folder / "model.pt", tmp_path / "a.safetensors"):
        with pytest.raises(
            CheckpointError, match=rf"with options \({sign}\).* keep the config\.yaml of its run"
        ) as caught:
            open_model(path)
        assert "\n" not in str(caught.value)
    (folder / "config.yaml").write_bytes(config)
    assert open_model(folder).shape.options() == options


@pytest.mark.parametrize(
    ("has", "told", "message"),
    [
        ({}, {"positions": "rope"}, r"unknown position_embeddings\.weight"),
        ({"positions": "rope"}, {}, r"no position_embeddings\.weight"),
        ({}, {"norm": "rms"}, r"unknown .*ln_1\.weight"),
        ({"norm": "rms"}, {}, r"no .*ln_1\.weight"),
        ({}, {"bias": False}, r"unknown .*\.bias"),
        ({"bias": False}, {}, r"no .*\.bias"),
        ({}, {"head_bias": "unigram"}, "no head_bias"),
        ({"head_bias": "unigram"}, {}, "unknown head_bias"),
    ],
)
def test_a_config_of_other_options_is_noticed_where_tensors_show_it(
    tmp_path: Path, has: dict[str, Any], told: dict[str, Any], message: str
) -> None:
    folder = write_run(tmp_path / "run", **has)
    other = tiny_config(shape=told)
    (folder / "config.yaml").write_text(dump_yaml(other.to_dict()))
    with pytest.raises(CheckpointError, match=rf"does not fit the model \({message}") as caught:
        open_model(folder)
    assert "\n" not in str(caught.value)
