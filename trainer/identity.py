"""What makes a run, a checkpoint or a study another one: said once, at each field of a setting.

A field counts for everything unless it is marked otherwise, so a new one is never forgotten.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, TypeVar

from pydantic import BaseModel


class Identity(StrEnum):
    """Whose identity is asked for."""

    RESULT = "result"
    """The model that a run ends with, but for what the seed changes."""
    CHECKPOINT = "checkpoint"
    """The state that a run can continue from."""
    STUDY = "study"
    """The settings that all trials of a study share."""


class Ignored:
    """Mark of a field: two values of it can be of one and the same thing."""

    def __init__(self, *by: Identity) -> None:
        self.by = by


class CountsAs:
    """Mark of a field that is one way to say a property of the filled configuration."""

    def __init__(self, name: str) -> None:
        self.name = name


MarkT = TypeVar("MarkT")


def marked(model: type[BaseModel], kind: type[MarkT]) -> Iterator[tuple[str, MarkT]]:
    """The fields of a model that bear a kind of mark, by their names in YAML, with the mark."""
    for name, field in model.model_fields.items():
        for mark in field.metadata:
            if isinstance(mark, kind):
                yield field.alias or name, mark


def identity(model: type[BaseModel], data: Mapping[str, Any], of: Identity) -> dict[str, Any]:
    """Plain settings of a model, all or some of them, without what does not count for `of`."""
    ignored = {name for name, mark in marked(model, Ignored) if of in mark.by}
    kept = {name: value for name, value in data.items() if name not in ignored}
    for name, field in model.model_fields.items():
        inner, value = field.annotation, kept.get(name)
        if isinstance(inner, type) and issubclass(inner, BaseModel) and isinstance(value, Mapping):
            kept[name] = identity(inner, value, of)
    return kept


def digest(data: Mapping[str, Any]) -> str:
    """SHA-256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
