"""The stage graph of dvc.yaml, read with a YAML parser alone.

Airflow parses its DAG files all the time, and importing DVC takes over a second. So the part of
DVC's own syntax that this project uses is resolved here: `vars`, `foreach`, `matrix` and `${...}`.
A test holds the result against DVC's graph. What is not understood is refused, never guessed.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from posixpath import normpath
from typing import Any

from openmed.errors import BadInput
from pipeline.settings.yaml_file import read_mapping

_TEMPLATE = re.compile(r"(?<!\\)\$\{(.*?)\}")


@dataclass(frozen=True)
class Stage:
    """One stage after all templates are filled in.

    Attributes:
        name: Its name as DVC writes it, such as `train@vit`.
        cmd: The command line; several commands are joined with ` && `.
        deps: Paths it reads, POSIX, relative to the folder of dvc.yaml.
        outs, metrics: Paths it writes, metrics and plots included; those that are metrics files.
        upstream: Names of the stages that write something it reads, in the order of dvc.yaml.
    """

    name: str
    cmd: str
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    upstream: tuple[str, ...]
    metrics: tuple[str, ...] = ()


def load_graph(path: Path) -> dict[str, Stage]:
    """Reads dvc.yaml, and beside it params.yaml and what `vars` names, and says which stage needs which.

    Stage B depends on stage A when a dependency of B is an output of A, lies inside one or
    contains one.

    Returns:
        The stages by name, in the order of the file.

    Raises:
        BadInput: The file is missing, is not YAML, or uses something that is not understood.
    """
    document = read_mapping(path)
    context = _context(document.get("vars") or [], path.parent)
    stages = [
        _resolve(full_name, body, scope)
        for name, definition in (document.get("stages") or {}).items()
        for full_name, body, scope in _expand(name, definition, context)
    ]
    return {stage.name: replace(stage, upstream=_upstream(stage, stages)) for stage in stages}


def _context(variables: list[Any], folder: Path) -> dict[str, Any]:
    """Merges params.yaml, the files named under `vars` and its inline values."""
    context: dict[str, Any] = {}
    default = folder / "params.yaml"
    if default.exists():
        _merge(context, read_mapping(default))
    for entry in variables:
        if isinstance(entry, Mapping):
            _merge(context, entry)
            continue
        name, _, keys = str(entry).partition(":")
        content = read_mapping(folder / name)
        _merge(context, {key: content[key] for key in keys.split(",")} if keys else content)
    return context


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _expand(
    name: str, definition: Mapping[str, Any], context: dict[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any], dict[str, Any]]]:
    """Yields (name, body, values) once for a plain stage and once an item for a group."""
    if "matrix" in definition:
        body = {key: value for key, value in definition.items() if key != "matrix"}
        for key, item in _matrix_items(_fill(definition["matrix"], context)):
            yield f"{name}@{key}", body, {**context, "item": item, "key": key}
    elif "foreach" in definition:
        for key, item, extra in _foreach_items(name, _fill(definition["foreach"], context)):
            yield f"{name}@{key}", definition["do"], {**context, "item": item, **extra}
    else:
        yield name, definition, context


def _matrix_items(axes: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for combination in product(*(list(enumerate(values)) for values in axes.values())):
        chosen = list(zip(axes, combination, strict=True))
        label = "-".join(f"{axis}{i}" if _is_nested(v) else _text(v) for axis, (i, v) in chosen)
        yield label, {axis: value for axis, (_, value) in chosen}


def _foreach_items(name: str, data: Any) -> Iterator[tuple[str, Any, dict[str, str]]]:
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield _text(key), value, {"key": _text(key)}
    elif isinstance(data, list):
        by_index = any(_is_nested(value) for value in data)
        for index, value in enumerate(data):
            yield str(index) if by_index else _text(value), value, {}
    else:
        raise BadInput(f"stage '{name}': foreach needs a list or a mapping, not {data!r}")


def _resolve(name: str, body: Mapping[str, Any], scope: Mapping[str, Any]) -> Stage:
    """Fills in one stage; `upstream` is found later, when all stages are known."""
    for key in ("vars", "wdir"):
        if key in body:
            raise BadInput(f"stage '{name}': '{key}' inside a stage is not supported, remove it")
    command = _fill(body.get("cmd", ""), scope)
    paths = {kind: tuple(_paths(body.get(kind), scope)) for kind in ("deps", "outs", "metrics", "plots")}
    return Stage(
        name=name,
        cmd=" && ".join(command) if isinstance(command, list) else str(command),
        deps=paths["deps"],
        outs=paths["outs"] + paths["metrics"] + paths["plots"],
        upstream=(),
        metrics=paths["metrics"],
    )


def _paths(entries: list[Any] | None, scope: Mapping[str, Any]) -> Iterator[str]:
    for entry in entries or []:
        # An output with options is a mapping of one key: {path: {cache: false}}.
        for path in entry if isinstance(entry, Mapping) else [entry]:
            yield normpath(_text(_fill(path, scope)))


def _fill(value: Any, scope: Mapping[str, Any]) -> Any:
    """Replaces `${a.b}`; a string that is one template alone keeps the type of its value."""
    if isinstance(value, Mapping):
        return {_fill(key, scope): _fill(item, scope) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, scope) for item in value]
    if not isinstance(value, str):
        return value
    if whole := _TEMPLATE.fullmatch(value):
        return _select(whole[1], scope)
    return _TEMPLATE.sub(lambda match: _text(_select(match[1], scope)), value).replace("\\${", "${")


def _select(expression: str, scope: Mapping[str, Any]) -> Any:
    value: Any = scope
    for key in expression.strip().replace("[", ".").replace("]", "").split("."):
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (KeyError, IndexError, TypeError, ValueError):
            raise BadInput(f"dvc.yaml: '${{{expression}}}' has no value, add it to params.yaml") from None
    return value


def _text(value: Any) -> str:
    if _is_nested(value):
        raise BadInput(f"dvc.yaml: {value!r} stands where one plain value is needed")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping | list)


def _upstream(stage: Stage, stages: list[Stage]) -> tuple[str, ...]:
    return tuple(
        other.name
        for other in stages
        if other is not stage and any(overlap(dep, out) for dep in stage.deps for out in other.outs)
    )


def overlap(one: str, other: str) -> bool:
    """Tells whether two paths are the same or one lies inside the other."""
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")
