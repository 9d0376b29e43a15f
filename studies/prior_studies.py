"""Prior studies whose complete runs are data points of another study's fit (`--points-from`).

A law needs several budgets, and a prior search at a smaller one has paid for them. Its runs are
data points and nothing else: no candidates for promotion, no trials of the sampler's. Losses must
be comparable, so they must be measured on the same tokens and have learned from the same data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from budgetsweep.config import parse
from budgetsweep.errors import DataError, StudyError
from studies.database.store import Store
from studies.database.study_settings import StudySettings
from studies.database.tables import Run, Study
from studies.scaling.fitted_runs import PriorRuns
from trainer.data.config import DataConfig
from trainer.events import RunStatus

DATA_NAMES = {"source": "data set", "validation": "validation set", "text_field": "text field"}
"""What names a study's data, in words."""


def base_with_prior_studies(store: Store, name: str, settings: StudySettings) -> dict[str, Any]:
    """The run settings of a new study, with the validation tokens of its prior studies.

    Unless it has its own number of them. `name` is the new study's, `settings` name the prior ones.

    Raises:
        StudyError: there is no such study, or its runs cannot be compared.
    """
    base = settings.base
    for other in _studies(store, name, settings.points_from):
        _check_kind(other, settings)
        if base["data"].get("val_tokens") is None and other.val_tokens is not None:
            base = {**base, "data": {**base["data"], "val_tokens": other.val_tokens}}
    return base


def prior_runs(
    store: Store, study: Study, names: Iterable[str] = (), cache_dir: Path | None = None
) -> PriorRuns:
    """Complete runs of the prior studies of a study, and of others that are named.

    Of a study's own prior ones those runs that had ended when it was created, so that a search goes
    on after an interruption as it would have without; of the others all.

    Raises:
        StudyError: there is no such study, or its runs cannot be compared with this one's.
    """
    own = list(study.settings.points_from)
    found: dict[str, list[Run]] = {}
    for other in _studies(store, study.name, [*own, *names]):
        _check(study, other, cache_dir)
        runs = store.runs(other.id, statuses=(RunStatus.COMPLETE,))
        if other.name not in names:
            created = study.created_utc
            runs = [r for r in runs if r.finished_utc is not None and r.finished_utc <= created]
        found[other.name] = runs
    return found


def _studies(store: Store, name: str, names: Iterable[str]) -> list[Study]:
    wanted = list(dict.fromkeys(names))
    if name in wanted:
        raise StudyError(f"--points-from {name}: a study's own runs are data points anyway")
    return [store.study(other) for other in wanted]


def _check(study: Study, other: Study, cache_dir: Path | None) -> None:
    """Refuse a study whose losses are not comparable with another's."""
    _check_kind(other, study.settings)
    if other.val_checksum != study.val_checksum:
        raise StudyError(
            f"--points-from {other.name}: another validation set ({other.val_tokens} tokens, here "
            f"{study.val_tokens}), by its checksum, so that losses cannot be compared; a study "
            "that is created with --points-from validates on as much"
        )
    if not _same_training_data(study, other, cache_dir):
        raise StudyError(
            f"--points-from {other.name}: another training set, by its checksum, so that losses "
            "cannot be compared"
        )


def _same_training_data(study: Study, other: Study, cache_dir: Path | None) -> bool:
    """Whether two studies learn from one data set, the one perhaps from less of it."""
    if study.data_checksum == other.data_checksum:
        return True
    from trainer.data.prepare import open_prepared

    data = {
        one.name: parse(DataConfig, one.settings.base["data"], "data") for one in (study, other)
    }
    if any(config.train_tokens is None for config in data.values()):
        return False
    short, long = sorted((study, other), key=lambda one: data[one.name].train_tokens or 0)
    cut = data[long.name].model_copy(update={"train_tokens": data[short.name].train_tokens})
    try:
        opened = open_prepared(cut, study.settings.base["tokenizer_encoding"], cache_dir)
    except DataError as error:
        raise StudyError(
            f"--points-from {other.name}: its training set cannot be compared ({error})"
        ) from error
    return opened.data_checksum == short.data_checksum


def _check_kind(other: Study, settings: StudySettings) -> None:
    """Refuse a study of another kind, whatever its data hold."""
    both = (other.settings, settings)
    compared = {
        "FLOP convention": tuple(one.convention for one in both),
        "source of losses": tuple(one.backend for one in both),
        "tokenizer": tuple(one.base["tokenizer_encoding"] for one in both),
        "architecture": tuple(_fixed(one.space["parameters"], "architecture") for one in both),
        "recipe": tuple(_fixed(one.space["parameters"], "recipe") for one in both),
    }
    if settings.location is None:  # else a file, which its checksum names
        for key, what in DATA_NAMES.items():
            compared[what] = tuple(one.base["data"].get(key) for one in both)
    for what, values in compared.items():
        if values[0] != values[1]:
            before, now = ("none" if value is None else value for value in values)
            raise StudyError(
                f"--points-from {other.name}: another {what} ({before}, here {now}), so that its "
                "runs do not follow the same law"
            )


def _fixed(parameters: Mapping[str, Any], name: str) -> Any:
    """What a space fixes, where it does."""
    entry = parameters.get(name)
    return None if entry is None else entry.get("value", entry)
