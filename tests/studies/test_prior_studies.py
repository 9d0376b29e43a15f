"""Prior studies as data points of a fit: what they give, what is refused, never candidates."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from budgetsweep.errors import StudyError
from reports.facts import Facts
from reports.read import read_study
from reports.text import scaling as text_scaling
from studies.database.store import Store
from studies.database.tables import Study
from studies.execution.messages import Workers
from studies.execution.training import Training
from studies.prior_studies import base_with_prior_studies, prior_runs
from studies.promotion.promote import PromoteHooks, PromoteSettings, promote
from studies.scaling.prediction import fit_study
from studies.search import Hooks, search
from tests.support.searches import Recorder, simulated, tiny_space, write_text
from tests.support.tiny_studies import study_settings

SMALL: dict[str, Any] = {"budget_flops": 10**14, "trials": 12, "study": "small"}
LATER: dict[str, Any] = {"budget_flops": 10**15, "trials": 5, "study": "large"}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a prior study and of a later one with its points."""
    folder = tmp_path_factory.mktemp("prior")
    search(simulated(folder, **SMALL), Hooks())
    recorder = Recorder()
    search(simulated(folder, **LATER, points_from=("small",)), Hooks(observer=recorder))
    assert recorder.messages[0] == "12 complete runs of small are data points of the fit too"
    return folder


@pytest.fixture
def copied(searched: Path, tmp_path: Path) -> Path:
    """The same database, to go on with."""
    shutil.copy(searched / "s.db", tmp_path / "s.db")
    return tmp_path


def test_a_few_trials_suffice_for_a_law_with_a_prior_study(searched: Path) -> None:
    with Store.open(searched / "s.db") as store:
        study, small = store.study("large"), store.study("small")
        runs = store.runs(study.id)
        alone = fit_study(study, runs, 100.0)
        fit = fit_study(study, runs, 100.0, prior_runs(store, study))
        assert alone.refusal is not None
        assert fit.refusal is None
        assert fit.runs.n_prior == {"small": 12}
        assert len(fit.runs.runs) == 17
        # Points, never candidates.
        ids = {run.id for run in runs}
        assert len(fit.candidates) == 5
        assert {candidate.run_id for candidate in fit.candidates} == ids
        assert fit.to_dict()["earlier"] == {"small": 12}
        stored = store.newest_fit(study.id)
        assert stored is not None
        assert stored.record["candidates"] == fit.to_dict()["candidates"]
        assert prior_runs(store, small) == {}


def test_the_report_says_where_points_are_from(searched: Path) -> None:
    facts = Facts(read_study(str(searched / "s.db"), "large"))
    law = text_scaling.answers(facts)[0]
    assert "5 are this study's own, 12 from study small." in law.text  # type: ignore[union-attr]


def test_promote_takes_points_of_studies_that_are_named(copied: Path) -> None:
    search(simulated(copied, **{**LATER, "study": "alone"}), Hooks())
    asked: dict[str, Any] = {"storage": copied / "s.db", "study": "alone", "scale": 10.0}
    without = promote(PromoteSettings(**asked), PromoteHooks())
    assert without.predicted is None
    told = promote(PromoteSettings(**asked, points_from=("small",)), PromoteHooks())
    assert told.predicted is not None
    # The study's own choice stays what it is.
    assert promote(PromoteSettings(**asked), PromoteHooks()).run.id == without.run.id  # type: ignore[union-attr]
    with Store.open(copied / "s.db") as store:
        assert store.study("alone").settings.points_from == ()


def test_what_a_prior_study_finds_later_changes_no_search(copied: Path) -> None:
    """A search goes on as it was started; `promote --points-from` sees all there is."""
    search(simulated(copied, **{**SMALL, "trials": 14}), Hooks())
    with Store.open(copied / "s.db") as store:
        study = store.study("large")
        assert len(prior_runs(store, study)["small"]) == 12
        assert len(prior_runs(store, study, ("small",))["small"]) == 14


def test_the_same_command_goes_on_and_another_list_is_refused(copied: Path) -> None:
    again = simulated(copied, **{**LATER, "trials": 6}, points_from=("small",))
    assert search(again, Hooks()).n_finished == 6
    with pytest.raises(StudyError, match="another list of prior studies"):
        search(simulated(copied, **LATER), Hooks())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--points-from", "smal"), "holds no study 'smal'; did you mean 'small'"),
        (("--study", "new", "--points-from", "new"), "a study's own runs are data points anyway"),
        (("--simulate", "hoffmann2022"), "another source of losses"),
        (("--convention", "mac"), "another FLOP convention (nanogpt, here mac)"),
        (("--tokenizer", "r50k_base"), "another tokenizer (gpt2, here r50k_base)"),
        (("--set", "recipe=gpt2"), "another recipe (modern, here gpt2)"),
    ],
)  # fmt: skip
def test_runs_that_cannot_be_compared_are_refused_in_one_line(
    copied: Path, refused: Callable[..., str], words: tuple[str, ...], message: str
) -> None:
    default = ("--simulate", "--study", "other", "--points-from", "small", "--trials", "1")
    assert message in refused("search", *default, *words, "--storage", str(copied / "s.db"))
    with Store.open(copied / "s.db") as store:
        assert store.study_names() == ["small", "large"]


class Texts:
    """Studies of real text, their data fixed and nothing trained."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, Store.open(folder / "t.db", create=True)
        self.text = write_text(folder, n_documents=4000)

    def study(self, name: str, budget: int, **data: Any) -> Study:
        """A study at a budget, with more text the larger it is."""
        space = tiny_space()
        base = {
            "tokenizer_encoding": "bytes",
            "device": "cpu",
            "data": {"source": str(self.text), "text_field": "text", **data},
        }
        settings = study_settings(
            budget_flops=budget, sampler="qmc", space=space.to_dict(), base=base
        )
        study = self.store.create_study(name, settings)
        workers = Workers(cache_dir=self.folder / "cache")
        fixed, facts = Training().fix_data(study, space, workers, None)
        changed = {"base": {**base, "data": dict(fixed)}}
        self.store.set_study_data(study.id, facts, settings.model_copy(update=changed))
        return self.store.study(name)

    def prior_runs(self, study: Study, name: str) -> object:
        """What `--points-from` makes of another study."""
        return prior_runs(self.store, study, (name,), self.folder / "cache")


def test_a_longer_part_of_the_same_text_is_the_same_text(tmp_path: Path) -> None:
    texts = Texts(tmp_path)
    small = texts.study("small", 10**8, val_tokens=4096)
    large = texts.study("large", 10**9, val_tokens=4096)
    assert small.data_checksum != large.data_checksum
    assert texts.prior_runs(large, "small") == {"small": []}
    assert texts.prior_runs(small, "large") == {"large": []}
    other = texts.study("other", 10**9, val_tokens=2048)
    with pytest.raises(StudyError, match=r"\(4096 tokens, here 2048\).*validates on as much"):
        texts.prior_runs(other, "small")


def test_another_training_text_is_refused_by_its_checksum(tmp_path: Path) -> None:
    """The first documents are others, the validation documents the same."""
    texts = Texts(tmp_path)
    held = tmp_path / "held.txt"
    held.write_text(texts.text.read_text()[:30_000])
    same = {"validation": str(held), "val_tokens": 4096}
    texts.study("small", 10**8, **same)
    texts.text.write_text("another beginning " * 20 + "\n\n" + texts.text.read_text())
    large = texts.study("large", 10**9, **same)
    with pytest.raises(StudyError, match="small: another training set, by its checksum"):
        texts.prior_runs(large, "small")


def test_validation_is_as_long_as_the_prior_studies(tmp_path: Path) -> None:
    texts = Texts(tmp_path)
    texts.study("small", 10**8, val_tokens=4096)
    data: dict[str, Any] = {"source": str(texts.text), "text_field": "text"}
    base = {"tokenizer_encoding": "bytes", "device": "cpu", "data": data}

    def settled(base: dict[str, Any], *names: str) -> dict[str, Any]:
        space = tiny_space().to_dict()
        asked = study_settings(sampler="qmc", space=space, base=base, points_from=names)
        return base_with_prior_studies(texts.store, "large", asked)

    assert settled(base, "small") == {**base, "data": {**data, "val_tokens": 4096}}
    own = {**base, "data": {**data, "val_tokens": 2048}}
    assert settled(own, "small") == own  # and refused, once both texts are there
    assert settled(base) == base
