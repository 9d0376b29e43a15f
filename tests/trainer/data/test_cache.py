"""The cache: names, lists, what opens and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from budgetsweep.errors import ConfigError, DataError
from tests.support.data_files import prepared, same
from trainer.data.cache import default_cache_dir, folder_for, list_prepared
from trainer.data.config import DataConfig
from trainer.data.prepare import open_prepared, prepare
from trainer.data.shards.tokens import open_tokens
from trainer.data.tokenizers import ByteTokenizer

pytestmark = pytest.mark.usefixtures("small_blocks")


def test_list_prepared(source: Path, cache: Path):
    assert list_prepared() == []
    data = prepared(source, 30_000)
    (info,) = list_prepared()
    assert info.folder == data.folder
    assert info.folder.parent.parent == cache
    assert info.source == str(source)
    assert info.tokenizer_encoding == "bytes"
    assert info.state == "ready"
    assert info.train_tokens >= 30_000
    assert info.size_bytes > 2 * info.train_tokens
    prepared(source)
    assert list_prepared()[0].state == "ready (whole text)"
    shard = data.folder / "train-00001.tok"
    raw = shard.read_bytes()
    shard.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert list_prepared()[0].state == "ready (whole text)"
    (info,) = list_prepared(verify=True)
    assert info.state.startswith(f"damaged: {shard}: damaged (checksum of the tokens differs)")
    shard.write_bytes(raw[:-1])
    assert list_prepared()[0].state.startswith(f"damaged: {shard}: truncated")
    (data.folder / "manifest.json").write_text("{")
    assert list_prepared()[0].state.startswith("damaged: ")
    with pytest.raises(DataError, match="damaged"):
        prepared(source, 30_000)


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path):
    assert default_cache_dir() == cache
    monkeypatch.delenv("BUDGETSWEEP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr("sys.platform", "linux")
    assert default_cache_dir() == tmp_path / "xdg" / "budgetsweep"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_dir() == tmp_path / "home" / ".cache" / "budgetsweep"


def test_a_cache_that_cannot_be_written(source: Path, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot be written .* set BUDGETSWEEP_CACHE"):
        prepared(source, cache_dir=tmp_path / "file")


def test_names_of_one_text_share_a_folder():
    c4 = folder_for(DataConfig(source="c4"), "gpt2")
    same_text = folder_for(DataConfig(source="hub:allenai/c4:en"), "gpt2")
    assert c4 == same_text
    assert c4.name.startswith("allenai-c4-en-gpt2-")
    assert c4 != folder_for(DataConfig(source="c4"), "bytes")
    assert c4 != folder_for(DataConfig(source="c4", text_field="url"), "gpt2")


def test_keywords_win_over_folders_of_that_name(source: Path, monkeypatch: pytest.MonkeyPatch):
    data = prepared(source)
    for name in ("demo", "c4"):
        data.folder.parent.joinpath(name).symlink_to(data.folder)
    monkeypatch.chdir(data.folder.parent)
    for name in ("demo", "c4"):
        assert folder_for(DataConfig(source=name), "bytes") != Path(name)
        assert same(prepared(f"./{name}"), data)


def test_a_prepared_folder_is_a_source(source: Path):
    data = prepared(source)
    config = DataConfig(source=str(data.folder))
    again = prepare(config, "bytes", train_tokens=10**9, val_tokens=10**9)
    assert same(again, data)
    assert folder_for(config, "bytes") == data.folder
    assert open_prepared(config, "bytes").data_checksum == data.data_checksum
    with pytest.raises(DataError, match="prepared with tokenizer bytes, not gpt2; set tokenizer"):
        prepare(config, "gpt2", train_tokens=None, val_tokens=None)
    with pytest.raises(DataError, match="have their own validation"):
        prepared(data.folder, validation=str(source))


def test_open_prepared_is_strict(source: Path):
    config = DataConfig(source=str(source))
    with pytest.raises(DataError, match="not prepared with tokenizer bytes"):
        open_prepared(config, "bytes")
    data = prepared(source, 20_000)
    ready = len(open_prepared(config, "bytes").train)
    assert ready >= 20_000
    cut = config.model_copy(update={"train_tokens": 123, "val_tokens": 45})
    opened = open_prepared(cut, "bytes")
    assert (len(opened.train), len(opened.val)) == (123, 45)
    assert opened.train[:].tolist() == data.train[:123].tolist()
    too_much = config.model_copy(update={"train_tokens": 10**9})
    with pytest.raises(DataError, match=f"1000000000 training tokens asked for, {ready} are prep"):
        open_prepared(too_much, "bytes")
    prepared(source)
    with pytest.raises(DataError, match=r"training tokens asked for, .* prepared; ask for less"):
        open_prepared(too_much, "bytes")
    too_much = config.model_copy(update={"val_tokens": 10**9})
    with pytest.raises(DataError, match=r"validation tokens asked for, .* prepared; ask for less"):
        open_prepared(too_much, "bytes")
    with pytest.raises(ConfigError, match="expected one of gpt2"):
        open_prepared(config, "bpe")


def test_the_tokens_open_without_tokenizer_or_source(source: Path):
    data = prepared(source)
    tokenizer = ByteTokenizer()
    source.unlink()
    opened = open_tokens(data.folder, verify=True)
    assert tokenizer.decode(opened.val[:20].tolist())
    with pytest.raises(DataError, match="no such file or folder"):
        open_prepared(DataConfig(source=str(source)), "bytes")
