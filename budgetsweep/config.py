"""YAML to strict pydantic models and back, with errors that a person can act on.

Nothing here knows what is configured. `model.config`, `trainer.config` and
`studies.space.search_space` build their models on `StrictModel`; `parse` turns pydantic's errors
into one line with the place, what was expected and the nearest known key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from budgetsweep.errors import ConfigError, Reason

_FLOAT_TAG = "tag:yaml.org,2002:float"
_BOOL_TAG = "tag:yaml.org,2002:bool"
_FLOAT = re.compile(
    r"""^[-+]?(?:
        [0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
      | \.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
      | [0-9][0-9_]*[eE][-+]?[0-9]+
      | \.(?:inf|Inf|INF)
    )$|^\.(?:nan|NaN|NAN)$""",
    re.VERBOSE,
)


def shape_error(message: str) -> PydanticCustomError:
    """The error that a validator raises for sizes that do not fit together."""
    return PydanticCustomError(Reason.INVALID_SHAPE.value, message)


class StrictModel(BaseModel):
    """A configuration object: unknown keys are errors, values do not change after parsing."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False
    )


ModelT = TypeVar("ModelT", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Safe; reads `1e-4` as a number and `off` as a word (YAML 1.2), refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping whose keys are all different."""
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {name!r} is given twice", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


# A copy, so that the loader of other libraries in this process is left alone.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag not in (_FLOAT_TAG, _BOOL_TAG)]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# `compile: off` is a word, as in YAML 1.2: only true and false are truth values.
_Loader.add_implicit_resolver(
    _BOOL_TAG, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(_FLOAT_TAG, _FLOAT, list("-+0123456789."))


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML text; `where` names it in errors.

    Raises:
        ConfigError: the text is not YAML, or a key is given twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise ConfigError(f"{place}: {problem}; expected YAML such as `batch_size: 32`") from error
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{where}: cannot be read as YAML ({error})") from error


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Raises:
        ConfigError: the file is missing, unreadable, not UTF-8, not YAML or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; give the path of a YAML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    data = parse_yaml(text, str(path))
    if data is None:
        raise ConfigError(f"{path}: the file is empty; expected lines such as `batch_size: 32`")
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, found {_kind(data)}")
    return data


def dump_yaml(data: Mapping[str, Any]) -> str:
    """YAML text of plain data, keys in the order given; floats survive a round trip exactly."""
    # PyYAML loses Unicode's own line breaks unless they are escaped, as repr() escapes them.
    readable = not any(mark in repr(data) for mark in (r"\x85", r"\u2028", r"\u2029"))
    return yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=readable, width=100)


class _Dumper(yaml.SafeDumper):
    """Safe; writes for readers of YAML 1.1 and 1.2."""


_Dumper.add_multi_representer(StrEnum, lambda dumper, word: dumper.represent_str(word.value))
# Words that either version of YAML would read as numbers are quoted.
_Dumper.add_implicit_resolver(_FLOAT_TAG, _FLOAT, list("-+0123456789."))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known word, or the list of known words."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


def parse(model: type[ModelT], data: Any, where: str) -> ModelT:
    """Build `model` from plain data; the first mistake becomes a ConfigError of one line.

    The message begins with `where`, a file's name or another origin.

    Raises:
        ConfigError: unknown key (with the nearest known one), wrong type, value out of range.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected `key: value` settings, found {_kind(data)}")
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        shape = any(problem["type"] == Reason.INVALID_SHAPE for problem in error.errors())
        reason = Reason.INVALID_SHAPE if shape else Reason.INVALID_VALUE
        raise ConfigError(f"{where}: {_first_problem(model, error)}", reason) from error


def _first_problem(model: type[BaseModel], error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    # An unknown key is usually the cause of a missing one: name it first.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    location = ".".join(str(part) for part in problem["loc"] if not _is_tag(part))
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if problem["type"] == "extra_forbidden":
        word = str(problem["loc"][-1])
        return (
            f"unknown key {location!r}{did_you_mean(word, _keys_at(model, problem['loc']))}{more}"
        )
    if problem["type"] == "missing":
        return f"{location} is missing{more}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if problem["type"] == Reason.INVALID_SHAPE or (
        problem["type"] == "value_error" and not location
    ):
        return f"{message}{more}"
    return f"{location} = {_short(problem['input'])}: {message}{more}"


def _is_tag(part: int | str) -> bool:
    """Whether this part of a location is the tag of a union's member and no key: `<name>`."""
    return str(part).startswith("<")


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> set[str]:
    """The keys that `model` accepts where `location` (a path ending in an unknown key) points."""
    for position, part in enumerate(location[:-1]):
        for name, field in model.model_fields.items():
            if part in (name, field.alias):
                tag = location[position + 1]
                for candidate in (field.annotation, *getattr(field.annotation, "__args__", ())):
                    tagged = getattr(candidate, "__metadata__", ())
                    if tagged and tagged[0].tag == tag:
                        candidate = candidate.__origin__
                    if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                        model = candidate
    return {field.alias or name for name, field in model.model_fields.items()}


def apply_overrides(data: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of `data` with each `a.b=value` set; values are read as YAML.

    Raises:
        ConfigError: an override is not of the form `key=value` or steps into a plain value.
    """
    result = dict(data)
    for override in overrides:
        key, separator, text = override.partition("=")
        parts = key.strip().split(".")
        if not separator or not all(parts):
            raise ConfigError(f"--set {override}: expected key=value, such as batch_size=64")
        node = result
        for part in parts[:-1]:
            child = node.get(part, {})
            if not isinstance(child, dict):
                raise ConfigError(f"--set {override}: {part!r} holds a value, not a group of keys")
            node[part] = dict(child)
            node = node[part]
        node[parts[-1]] = parse_yaml(text, f"--set {key}")
    return result


def _kind(value: Any) -> str:
    names = {list: "a list", str: "plain text", type(None): "nothing", bool: "true/false"}
    return names.get(type(value), f"a {type(value).__name__}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
