"""Builds the report of a study: HTML, Markdown, figures, data and the best configuration.

It reads the database and nothing else, and writes nothing into it. Every file appears whole or
not at all; the page itself comes last. The same database gives the same bytes.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budgetsweep.config import dump_yaml, write_bytes_atomically, write_text_atomically
from model.flops import CONVENTIONS
from reports.document import (
    Block,
    Bullets,
    Code,
    Document,
    Heading,
    Picture,
    clean,
    to_html,
    to_markdown,
)
from reports.facts import Facts
from reports.figures import runs as runs
from reports.figures import space as space
from reports.figures import study_scaling
from reports.read import read_study
from reports.style import theme
from reports.style.formats import loss
from reports.style.theme import Chart, NoChart
from reports.text import curves as text_curves
from reports.text import replay as text_replay
from reports.text import scaling as text_scaling
from reports.text import search as text_search
from reports.text import summary
from reports.text.advice import advice
from studies.database.tables import Run
from studies.simulation.worlds import is_replayed

FIGURES = (
    runs.history,
    runs.learning_curves,
    space.isoflop,
    space.learning_rate,
    space.parallel,
    space.importance,
    runs.schedule,
    runs.proposals,
    study_scaling.isoflop_fit,
    study_scaling.compute_frontier,
    study_scaling.regret,
    study_scaling.lr_optimum,
)


@dataclass(frozen=True)
class ReportFiles:
    """The files of a report."""

    html: Path
    """One self-contained page."""
    markdown: Path
    data_csv: Path
    """A row a run, every fact in a column."""
    best_yaml: Path | None
    """Configuration of the best trial; None: no trial is complete."""
    figures: list[Path]
    """PNG and SVG of every figure that has something to show."""


def build_report(storage_url: str, study_name: str | None, out_dir: Path) -> ReportFiles:
    """Write the report of a study into a folder.

    Args:
        storage_url: SQLAlchemy URL of the study's database, or the name of a SQLite file.
        study_name: which study; None: the one that was begun last.
        out_dir: made if it is missing; files of an earlier report in it are replaced.

    Raises:
        StudyError: no such database or study, or not a database of ours.
    """
    return write_report(Facts(read_study(storage_url, study_name)), out_dir)


def write_report(
    facts: Facts,
    out_dir: Path,
    figures: Sequence[Callable[[Facts], Chart | NoChart]] = FIGURES,
) -> ReportFiles:
    """Write the report of facts already read, with all figures or only some."""
    folder = out_dir / "figures"
    written: list[Path] = []
    pictures: dict[str, Picture] = {}
    for make in figures:
        chart = make(facts)
        if chart.name in text_replay.hidden(facts):
            chart = NoChart(chart.name, "")
        pictures[chart.name] = _picture(chart, folder, written)
    best_yaml = _write_best(facts, out_dir / "best.yaml")
    data_csv = out_dir / "data.csv"
    write_text_atomically(data_csv, data_table(facts))
    document = compose(facts, pictures, best_yaml)
    markdown, page = out_dir / "report.md", out_dir / "report.html"
    write_text_atomically(markdown, to_markdown(document, lambda name: f"figures/{name}.png"))
    write_text_atomically(page, to_html(document))
    return ReportFiles(page, markdown, data_csv, best_yaml, written)


def _picture(chart: Chart | NoChart, folder: Path, written: list[Path]) -> Picture:
    """Draw a figure in all its renditions; files of a figure that no longer exists are removed."""
    png, svg = folder / f"{chart.name}.png", folder / f"{chart.name}.svg"
    if isinstance(chart, NoChart):
        png.unlink(missing_ok=True)
        svg.unlink(missing_ok=True)
        return Picture(chart)
    wide, pixels = theme.svg_and_png(chart)
    narrow = theme.svg(chart, "narrow")
    write_bytes_atomically(png, pixels)
    write_text_atomically(svg, theme.on_paper(wide))
    written += [png, svg]
    return Picture(
        chart,
        {
            "wide": wide,
            "wide-dark": theme.to_dark(wide),
            "narrow": narrow,
            "narrow-dark": theme.to_dark(narrow),
        },
    )


def compose(facts: Facts, pictures: dict[str, Picture], best_yaml: Path | None) -> Document:
    """The report's blocks, in the order of the questions; figures not drawn are left out."""

    def shown(*names: str) -> list[Picture]:
        hidden = text_replay.hidden(facts)
        return [pictures[name] for name in names if name in pictures and name not in hidden]

    title, subtitle = summary.title(facts)
    blocks: list[Block] = [
        *summary.simulated(facts),
        *summary.head(facts),
        Heading("What was best?"),
        *summary.best(facts),
        *shown("history", "learning_curves"),
        Heading("What do the curves say?"),
        *text_curves.curves(facts),
        Heading("What did it cost?"),
        *summary.cost(facts),
        Heading("What was tried?"),
        *text_search.tried(facts),
        *text_search.best_few(facts),
        *text_replay.stand_ins(facts),
        *shown("isoflop", "learning_rate", "parallel", "importance", "schedule"),
    ]
    if best_yaml is not None and facts.best is not None:
        blocks.append(Code("The best configuration (best.yaml)", _best_text(facts, facts.best)))
    blocks += [
        Heading("Why were proposals rejected?"),
        *text_search.rejected(facts),
        *shown("proposals"),
        Heading("What failed?"),
        *text_search.failed(facts),
        Heading("What is predicted of a larger budget?"),
        *text_scaling.answers(facts),
        *shown("isoflop_fit", "compute_frontier", "regret", "lr_optimum"),
        *text_scaling.scores(facts),
        Heading("What did the larger budget bring?"),
        *text_search.promotion(facts),
        Heading("What to do next?"),
        Bullets(advice(facts)),
        Heading("Where this comes from"),
        text_search.provenance(facts),
    ]
    return Document(title, subtitle, blocks)


def _write_best(facts: Facts, path: Path) -> Path | None:
    if facts.best is None:
        path.unlink(missing_ok=True)
        return None
    write_text_atomically(path, _best_text(facts, facts.best))
    return path


def _best_text(facts: Facts, best: Run) -> str:
    study = " ".join(clean(facts.study.name).split())
    config = {**best.config, "output_dir": "outputs/best"}  # not the folder of the trial's results
    return (
        f"# Trial {best.number} of study {study}: validation loss "
        f"{loss(best.val_loss_nats)} nats a token.\n"
        + ("" if is_replayed(facts.world) else "# Runs again: budgetsweep train best.yaml\n")
        + dump_yaml(config)
    )


_RUN_FACTS = (
    "kind", "number", "status", "reason", "val_loss_nats", "val_ppl", "val_bits_per_byte",
    "val_loss_stderr_nats", "val_tokens", "train_loss_nats", "n_params", "num_steps",
    "tokens_per_step", "planned_tokens", "budget_flops", "planned_flops_nanogpt",
    "planned_flops_matmul", "planned_flops_mac", "epochs", "attempts", "step", "steps_executed",
    "steps_recomputed", "train_seconds", "eval_seconds", "estimated_memory_bytes",
    "peak_memory_bytes", "device_name", "precision", "compiled", "seed", "scale", "config_hash",
    "data_checksum", "val_checksum", "git_commit", "output_dir", "created_utc", "started_utc",
    "finished_utc",
)  # fmt: skip


def data_table(facts: Facts) -> str:
    """CSV text: one row a run with every fact; missing values are empty cells."""
    rows = [_row(facts, run) for run in facts.data.runs]
    plain = list(dict.fromkeys(name for row in rows for name in row)) or list(_RUN_FACTS)
    names = [name for name in plain if "." not in name]
    names += sorted(name for name in plain if "." in name)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _row(facts: Facts, run: Run) -> dict[str, Any]:
    row = {name: _cell(getattr(run, name)) for name in _RUN_FACTS}
    parent = facts.trial_of(run)
    row["parent_trial"] = parent.number if parent is not None else ""
    spending = facts.data.spending.get(run.id)
    for convention in CONVENTIONS:
        row[f"spent_flops_{convention}"] = (
            spending.spent.flops(convention) if spending is not None else ""
        )
    row["spent_tokens"] = spending.spent.tokens if spending is not None else ""
    row["verdicts"] = " ".join(text_curves.verdict_names(facts, run))
    row.update(_flat("param", run.params))
    row.update(_flat("config", run.config))
    row.update(_flat("version", run.versions))
    return row


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    """Nested mappings as dotted names."""
    if not isinstance(value, dict):
        return {clean(prefix): _cell(value)}
    parts: Iterable[dict[str, Any]] = (_flat(f"{prefix}.{k}", v) for k, v in value.items())
    return {name: cell for part in parts for name, cell in part.items()}


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, dt.datetime):
        return value.isoformat()
    return clean(value) if isinstance(value, str) else value
