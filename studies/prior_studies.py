"""Earlier studies whose complete runs are points of another study's law (`--points-from`).

A law needs several budgets, and an earlier search at a smaller one has paid for them. Its runs are
points and nothing else: no candidates for promotion, no trials of the sampler's. Losses must be
comparable, so they must be measured on the same tokens and have learned from the same text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from budgetsweep.config import parse
from budgetsweep.errors import DataError, StudyError
from studies.database.store import Store
from studies.database.tables import Run, Study
from studies.simulation.worlds import world_of
from studies.space.search_space import SearchSpace
from trainer.data.config import DataConfig
from trainer.events import RunStatus

Earlier = Mapping[str, list[Run]]
"""Complete runs by the name of their study."""

TEXT = {"source": "text", "validation": "validation text", "text_field": "field of the text"}
"""What names a text, in words."""


def settle(
    store: Store,
    name: str,
    convention: str,
    space: SearchSpace,
    base: dict[str, Any],
    names: Iterable[str],
) -> dict[str, Any]:
    """Refuse earlier studies of another kind before a study is entered.

    Args:
        store: the database of all of them.
        name: of the new study.
        convention: of its budget.
        space: its search space.
        base: its run settings.
        names: of the earlier ones.

    Returns:
        `base` with the earlier studies' number of validation tokens, unless it has its own: losses
        are compared on the same text.

    Raises:
        StudyError: there is no such study, or its runs cannot be compared.
    """
    for other in _studies(store, name, names):
        _refuse(other, convention, space.to_dict()["parameters"], base)
        if base["data"].get("val_tokens") is None and other.val_tokens is not None:
            base = {**base, "data": {**base["data"], "val_tokens": other.val_tokens}}
    return base


def earlier_runs(
    store: Store,
    study: Study,
    names: Iterable[str] = (),
    cache_dir: Path | None = None,
) -> Earlier:
    """Complete runs of the earlier studies of a study, and of others that are named.

    Of a study's own those that had ended when it was begun, so that a search goes on after an
    interruption as it would have without; of the others all.

    Args:
        store: the database of all of them.
        study: whose law is to be fitted; its data are fixed.
        names: of further studies.
        cache_dir: where tokens lie.

    Raises:
        StudyError: there is no such study, or its runs cannot be compared with this one's.
    """
    own = list(study.settings.points_from)
    found: dict[str, list[Run]] = {}
    for other in _studies(store, study.name, [*own, *names]):
        _check(study, other, cache_dir)
        runs = store.runs(other.id, statuses=(RunStatus.COMPLETE,))
        if other.name not in names:
            begun = study.created_utc
            runs = [r for r in runs if r.finished_utc is not None and r.finished_utc <= begun]
        found[other.name] = runs
    return found


def _studies(store: Store, name: str, names: Iterable[str]) -> list[Study]:
    found = []
    for other in dict.fromkeys(names):
        if other == name:
            raise StudyError(f"--points-from {other}: a study's own runs are points anyway")
        found.append(store.study(other))
    return found


def _check(study: Study, other: Study, cache_dir: Path | None) -> None:
    """Refuse a study whose losses are not comparable with another's."""
    _refuse(other, study.convention, study.space["parameters"], study.settings.base)
    if other.val_checksum != study.val_checksum:
        tokens, advice = "", ""
        if other.val_tokens != study.val_tokens:
            tokens = f" ({other.val_tokens} tokens, here {study.val_tokens})"
            advice = "; a study that is begun with --points-from measures on as much"
        raise StudyError(
            f"--points-from {other.name}: another validation text{tokens}, by its checksum, so "
            f"that losses cannot be compared{advice}"
        )
    if not _same_training_text(study, other, cache_dir):
        raise StudyError(
            f"--points-from {other.name}: another training text, by its checksum, so that losses "
            "cannot be compared"
        )


def _same_training_text(study: Study, other: Study, cache_dir: Path | None) -> bool:
    """Whether two studies learn from one text, the one perhaps from less of it."""
    if study.data_checksum == other.data_checksum:
        return True
    if world_of(study.settings.base) is not None:
        return False
    from trainer.data.prepare import open_prepared

    texts = {
        one.name: parse(DataConfig, one.settings.base["data"], "data") for one in (study, other)
    }
    if any(text.train_tokens is None for text in texts.values()):
        return False
    short, long = sorted((study, other), key=lambda one: texts[one.name].train_tokens or 0)
    cut = texts[long.name].model_copy(update={"train_tokens": texts[short.name].train_tokens})
    try:
        opened = open_prepared(cut, study.settings.base["tokenizer_encoding"], cache_dir)
    except DataError as error:
        raise StudyError(
            f"--points-from {other.name}: its training text cannot be compared ({error})"
        ) from error
    return opened.data_checksum == short.data_checksum


def _refuse(
    other: Study, convention: str, parameters: Mapping[str, Any], base: Mapping[str, Any]
) -> None:
    """Refuse a study of another kind, whatever its texts hold."""
    theirs, space = other.settings.base, other.space["parameters"]
    compared = {
        "FLOP convention": (other.convention, convention),
        "simulated world or table of runs": (world_of(theirs), world_of(base)),
        "tokenizer": (theirs["tokenizer_encoding"], base["tokenizer_encoding"]),
        "architecture": (_fixed(space, "architecture"), _fixed(parameters, "architecture")),
        "recipe": (_fixed(space, "recipe"), _fixed(parameters, "recipe")),
    }
    if world_of(base) is None:
        for key, what in TEXT.items():
            compared[what] = (theirs["data"].get(key), base["data"].get(key))
    for what, (before, now) in compared.items():
        if before != now:
            told = ["none" if one is None else one for one in (before, now)]
            raise StudyError(
                f"--points-from {other.name}: another {what} ({told[0]}, here {told[1]}), so that "
                "its runs are no points of the same law"
            )


def _fixed(parameters: Mapping[str, Any], name: str) -> Any:
    """What a space fixes, where it does."""
    entry = parameters.get(name)
    return None if entry is None else entry.get("value", entry)
