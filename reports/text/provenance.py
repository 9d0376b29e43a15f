"""Where the figures come from, so that they can be made again."""

from __future__ import annotations

from budgetsweep.config import dump_yaml
from budgetsweep.formats import DASH, gib, loss, moment, rate, whole
from reports.document import Code, Table, clean
from reports.facts import Facts


def provenance(facts: Facts) -> list[Table]:
    """The study, its data, and what the best trial ran on."""
    study = facts.study
    shown = facts.best or facts.first
    rows = [
        ["study", study.name],
        ["started", moment(study.created_utc)],
        ["budget per trial", f"{whole(study.budget_flops)} FLOPs ({study.convention})"],
        ["data", study.data_description or DASH],
        ["checksum of the training data", study.data_checksum or DASH],
        ["checksum of the validation set", study.val_checksum or DASH],
        ["validation tokens", whole(study.val_tokens)],
        ["bytes per token", rate(study.bytes_per_token)],
    ]
    if shown is not None:
        versions = ", ".join(f"{name} {version}" for name, version in shown.versions.items())
        peak, estimate = gib(shown.peak_memory_bytes), gib(shown.estimated_memory_bytes)
        rows += [
            [f"trial {shown.number}: git commit", shown.git_commit or DASH],
            ["versions", versions or DASH],
            ["peak memory", f"{peak} (estimated {estimate})"],
        ]
    if facts.data.other_studies:
        rows.append(["other studies in the database", ", ".join(facts.data.other_studies)])
    return [Table(["", ""], rows, wide_text=True)]


def best_configuration(facts: Facts) -> list[Code]:
    """The file best.yaml."""
    text = best_yaml(facts)
    return [] if text is None else [Code("The best configuration (best.yaml)", text)]


def best_yaml(facts: Facts) -> str | None:
    """The configuration of the best trial as YAML; None: no trial is complete."""
    best = facts.best
    if best is None:
        return None
    study = " ".join(clean(facts.study.name).split())
    config = {**best.config, "output_dir": "outputs/best"}  # not the folder of the trial's results
    again = "# Runs again: budgetsweep train best.yaml\n" if facts.has_learning_rate(best) else ""
    return (
        f"# Trial {best.number} of study {study}: validation loss "
        f"{loss(best.val_loss_nats)} nats per token.\n{again}{dump_yaml(config)}"
    )
