import base64
import csv
import io
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from budgetsweep.config import load_yaml, parse
from budgetsweep.errors import StudyError
from model.flops import count_params
from reports.build import build_report, data_table, write_report
from reports.facts import Facts
from reports.figures import runs
from reports.read import read_study
from reports.sections import SECTIONS
from studies.database.connection import storage_url
from tests.reports.conftest import HOSTILE
from tests.reports.test_document import Page, render_markdown
from trainer.config import RunConfig

EVERY = (
    "full", "empty", "all rejected", "all failed", "one trial", "promotion running",
    "promotion failed", "hostile",
)  # fmt: skip


def flat(text):
    return " ".join(text.split())


@pytest.mark.parametrize("variant", EVERY)
def test_the_page_stands_alone(built, variant):
    """No references out of the file; every image is a drawing that an XML parser accepts."""
    page = Page(built(variant).html)
    assert {"script", "link", "iframe", "object"}.isdisjoint(page.tags)
    assert "default-src 'none'" in built(variant).html
    assert page.tags.count("h1") == 1
    assert ("viewport", True) in [
        (value, True) for name, value in page.attributes if name == "name"
    ]
    references = [v for name, v in page.attributes if name in ("src", "srcset", "href")]
    assert len(references) == page.tags.count("figure")
    for reference in references:
        head, _, body = reference.partition(",")
        assert head == "data:image/svg+xml;base64"
        drawing = base64.b64decode(body, validate=True).decode()
        assert ET.fromstring(drawing).tag == "{http://www.w3.org/2000/svg}svg"
        for target in re.findall(r'(?:href|src)="([^"]*)"|url\(([^)]*)\)', drawing):
            assert "".join(target).startswith(("#", "data:")), target


@pytest.mark.parametrize("variant", EVERY)
def test_the_questions_come_in_order_in_both_writings(built, variant):
    report = built(variant)
    questions = [section.question for section in SECTIONS]
    assert re.findall("<h2>(.*)</h2>", report.html) == questions
    assert re.findall("^## (.*)$", report.markdown, re.MULTILINE) == questions


@pytest.mark.parametrize("variant", EVERY)
def test_nothing_missing_looks_like_a_number(built, variant):
    report = built(variant)
    for text in (
        "".join(Page(report.html).text),
        report.markdown,
        report.files.data_csv.read_text(encoding="utf-8"),
    ):
        odd = re.findall(r"\b(?:None|nan|NaN|inf|infinity|Traceback)\b", text)
        assert len(odd) == text.count("loss became nan at step") + text.count("diverged (NaN)")


@pytest.mark.parametrize("variant", EVERY)
def test_the_figures_are_files_and_pictures(built, variant):
    report = built(variant)
    names = {path.name for path in report.files.figures}
    assert names == {path.name for path in (report.files.html.parent / "figures").glob("*")}
    for path in report.files.figures:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
            assert f"](figures/{path.name})" in report.markdown
        else:
            ET.parse(path)
    assert report.html.count("<figure") == len(names) // 2


def test_the_head_has_loss_perplexity_and_bits_of_trial_and_promotion(built, facts):
    study = facts("full")
    text = flat("".join(Page(built("full").html).text).split("What was best?")[0])
    for run in (study.best, study.promoted):
        assert f"{run.val_loss_nats:.4f}" in text
        assert f"{run.val_ppl:.4g}" in text
        assert f"{run.val_bits_per_byte:.3f}" in text


@pytest.mark.parametrize(
    ("variant", "facts_said"),
    [
        ("empty", ["Nothing was proposed", "No proposal was rejected", "No run failed"]),
        ("all rejected", ["All 8 proposals were rejected"]),
        ("all failed", ["(3 failed)", "3 runs failed"]),
        ("one trial", ["only complete trial", "Nothing has been promoted", "Too few trials"]),
        ("promotion running", ["running, 60 % done", "recomputed", "so far", "pruner: 1 trial"]),
        ("promotion failed", ["failed after 30 %"]),
        ("full", ["nats below its trial", "were refused before they cost", "one standard error"]),
    ],
)
def test_what_happened_is_in_both_writings(built, variant, facts_said):
    html = flat("".join(Page(built(variant).html).text))
    markdown = flat(built(variant).markdown.replace("\\", ""))
    for fact in facts_said:
        assert fact in html
        assert fact in markdown


def test_best_yaml_is_the_run_that_was_best(built, facts):
    config = parse(RunConfig, load_yaml(built("full").files.best_yaml), "best.yaml")
    best = facts("full").best
    assert config.output_dir == "outputs/best"  # the trial's own folder is left alone
    assert config == RunConfig.model_validate({**best.config, "output_dir": "outputs/best"})
    assert config.total_tokens == best.planned_tokens
    assert count_params(config.model) == best.n_params


def test_data_csv_has_every_fact_of_every_run(built, facts):
    study = facts("full")
    with built("full").files.data_csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(study.data.runs)
    for row, run in zip(rows, study.data.runs, strict=True):
        assert (row["kind"], int(row["number"]), row["status"]) == (
            run.kind,
            run.number,
            run.status,
        )
        assert int(row["planned_flops_matmul"]) == run.planned_flops_matmul
        assert int(row["spent_flops_nanogpt"]) == study.data.spending[run.id].spent.nanogpt
        assert float(row["config.max_lr"]) == run.config["max_lr"]
        assert int(row["config.model_config.n_embd"]) == run.config["model_config"]["n_embd"]
        if run.val_loss_nats is None:
            assert row["val_loss_nats"] == ""
        else:
            assert float(row["val_loss_nats"]) == run.val_loss_nats
    assert rows[-1]["parent_trial"] == str(study.best.number)


def test_data_csv_of_an_empty_study_has_its_columns(facts):
    (header,) = csv.reader(io.StringIO(data_table(facts("empty"))))
    assert header[:3] == ["kind", "number", "status"]


def test_hostile_text_stays_text(built):
    report = built("hostile")
    page = Page(report.html)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.tags.count("img") == page.tags.count("figure")
    shown = flat("".join(page.text))
    assert flat(HOSTILE.split("\x00", maxsplit=1)[0]) in shown
    assert "<script" not in report.html
    rendered = Page(render_markdown(report.markdown))
    assert {"script", "h3"}.isdisjoint(rendered.tags)
    assert rendered.tags.count("img") == page.tags.count("img")
    assert rendered.tags.count("h1") == 1
    rows = list(csv.DictReader(io.StringIO(report.files.data_csv.read_text(encoding="utf-8"))))
    assert len(rows) == 15
    load_yaml(report.files.best_yaml)


def test_the_same_database_gives_the_same_bytes(built, tmp_path):
    """Read twice, written twice: all texts, and a drawing in all its renditions."""
    for name in ("one", "two"):
        facts = Facts(read_study(str(built("full").database)))
        write_report(facts, tmp_path / name, (runs.history,))
    one, two = (
        {p.relative_to(tmp_path / name): p.read_bytes() for p in files_in(tmp_path / name)}
        for name in ("one", "two")
    )
    assert one == two
    assert len(one) == 6
    full = built("full").files.html.parent
    for path in ("figures/history.svg", "figures/history.png", "data.csv", "best.yaml"):
        assert (full / path).read_bytes() == one[Path(path)]


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_new_report_replaces_the_old_one(built, tmp_path):
    """Files of figures that no longer have anything to show do not linger."""
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "history.png").write_bytes(b"old")
    (tmp_path / "figures" / "mine.png").write_bytes(b"not ours")
    (tmp_path / "best.yaml").write_text("old: true")
    (tmp_path / "report.html").write_text("old")
    files = build_report(storage_url(built("empty").database), "c4-1e15", tmp_path)
    assert files.best_yaml is None
    left = sorted(path.name for path in files_in(tmp_path))
    assert left == ["data.csv", "mine.png", "report.html", "report.md"]
    assert "Nothing was proposed yet" in files.html.read_text()


def test_a_missing_study_writes_nothing(tmp_path):
    out = tmp_path / "report"
    with pytest.raises(StudyError):
        build_report(str(tmp_path / "missing.db"), None, out)
    assert not out.exists()
