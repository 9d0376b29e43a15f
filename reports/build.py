"""Builds the report of a study: HTML, Markdown, figures, data and the best configuration.

It reads the database and nothing else, and writes nothing into it. Every file appears whole or
not at all; the page itself comes last. The same database gives the same bytes.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budgetsweep.files import write_bytes_atomically, write_text_atomically
from model.flops import Convention
from reports.document import Block, Document, Heading, Picture, clean, to_html, to_markdown
from reports.facts import Facts
from reports.read import read_study
from reports.sections import FIGURES, SECTIONS, MakeFigure
from reports.style import theme
from reports.style.theme import Chart, NoChart
from reports.text import best, provenance
from reports.text.curves import verdict_names
from studies.database.tables import Run


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
    """Write the report of a study (None: the newest); files of an earlier report are replaced.

    Raises:
        StudyError: no such database or study, or not a database of ours.
    """
    return write_report(Facts(read_study(storage_url, study_name)), out_dir)


def write_report(
    facts: Facts, out_dir: Path, figures: Collection[MakeFigure] = FIGURES
) -> ReportFiles:
    """Write the report of facts already read, with all figures or only some."""
    drawn: list[Path] = []
    blocks: list[Block] = [*best.head(facts)]
    for section in SECTIONS:
        blocks.append(Heading(section.question))
        for make_text in section.texts:
            blocks += make_text(facts)
        for make_figure in section.figures:
            if make_figure in figures:
                blocks.append(_picture(make_figure(facts), out_dir / "figures", drawn))
    document = Document(f"Study {facts.study.name}", best.subtitle(facts), blocks)
    best_yaml: Path | None = out_dir / "best.yaml"
    configuration = provenance.best_yaml(facts)
    if configuration is None:
        (out_dir / "best.yaml").unlink(missing_ok=True)
        best_yaml = None
    else:
        write_text_atomically(out_dir / "best.yaml", configuration)
    data_csv, markdown, page = (out_dir / f"{n}" for n in ("data.csv", "report.md", "report.html"))
    write_text_atomically(data_csv, data_table(facts))
    write_text_atomically(markdown, to_markdown(document, lambda name: f"figures/{name}.png"))
    write_text_atomically(page, to_html(document))
    return ReportFiles(page, markdown, data_csv, best_yaml, drawn)


def _picture(chart: Chart | NoChart, folder: Path, drawn: list[Path]) -> Picture:
    """Draw a figure; files of a figure that no longer exists are removed."""
    png, svg = folder / f"{chart.name}.png", folder / f"{chart.name}.svg"
    if isinstance(chart, NoChart):
        png.unlink(missing_ok=True)
        svg.unlink(missing_ok=True)
        return Picture(chart)
    drawing, pixels = theme.svg_and_png(chart)
    write_bytes_atomically(png, pixels)
    write_text_atomically(svg, drawing)
    drawn += [png, svg]
    return Picture(chart, drawing)


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
    row["parent_trial"] = "" if run.parent_run_id is None else facts.trial_of(run).number
    spent = facts.data.spending[run.id].spent
    for convention in Convention:
        row[f"spent_flops_{convention}"] = spent.flops(convention)
    row["spent_tokens"] = spent.tokens
    row["verdicts"] = " ".join(verdict_names(facts, run))
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
