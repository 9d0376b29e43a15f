"""Files made of a study: `budgetsweep report` and `budgetsweep export`."""

from __future__ import annotations

from pathlib import Path

import click

from budgetsweep.cli.options import output_dir_option, storage_options, writing


@click.command("report")
@output_dir_option("report")
@storage_options
def report_command(output_dir: Path, storage: str, study: str | None) -> None:
    """Write the report: HTML, Markdown, figures, data.csv, best.yaml."""
    from reports.build import build_report
    from studies.database.connection import storage_url

    with writing(output_dir, "--output-dir"):
        files = build_report(storage_url(storage), study, output_dir)
    for path in (files.html, files.markdown, files.data_csv, files.best_yaml):
        if path is not None:
            click.echo(str(path))
    click.echo(f"{len(files.figures)} figures in {output_dir / 'figures'}")


@click.command("export")
@output_dir_option("export")
@storage_options
def export_command(output_dir: Path, storage: str, study: str | None) -> None:
    """Write space.yaml, best.yaml, each run's YAML and runs.csv, ready to run again.

    For a trained model in other formats see `convert`.
    """
    from budgetsweep.config import dump_yaml
    from budgetsweep.files import write_text_atomically
    from studies.export import export_study

    files = export_study(storage, study)
    with writing(output_dir, "--output-dir"):
        for path, data in files.items():
            text = data if isinstance(data, str) else dump_yaml(data)
            write_text_atomically(output_dir / path, text)
    click.echo(
        f"{output_dir}: space.yaml (search --space), best.yaml and runs/*.yaml (train), runs.csv"
    )
