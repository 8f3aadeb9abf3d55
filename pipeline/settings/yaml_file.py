"""The one way YAML is read: whole, bounded, no key twice; whatever is wrong with it becomes one sentence.

Of a key that stands twice YAML's own loader takes the later one: a second `reviewers:` would take a reviewer
away.
"""

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from openmed.errors import BadInput

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

Settings = TypeVar("Settings", bound="BaseModel")
_LONGEST_BYTES = 16 << 20
# Aliases can make a short file mean an endless one; no file of this project comes near.
_DEEPEST, _MOST_VALUES = 50, 1_000_000


class _Loader(yaml.CSafeLoader):
    """The safe loader in C, which refuses a key that stands twice in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, _ in node.value:
                if key.tag == "tag:yaml.org,2002:merge" or not isinstance(key, yaml.ScalarNode):
                    continue
                if (name := self.construct_object(key)) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands there twice", key.start_mark
                    )
                seen.add(name)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path | str, *, missing: str = "") -> Any:
    """Reads a YAML file, None for an empty one; `missing` is said of an absent file, after its name.

    Raises:
        BadInput: It is not there, cannot be read, is no YAML, is too long or too deep, or has a key twice.
    """
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LONGEST_BYTES:
            raise BadInput(
                f"{path} is no file, or longer than {_LONGEST_BYTES >> 20} MiB: that holds no settings"
            )
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist{missing and ': ' + missing}") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read: {_one_line(error)}") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Any:
    """Reads YAML from a text; `source` names it in errors. Raises as `read_yaml`."""
    # Of damaged input the loader lets through what Python says: a 13th month is a ValueError.
    damaged = (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)
    depth = 0
    try:
        # Before it is composed: at 100,000 levels that ends the process.
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise BadInput(f"{source} cannot be read as YAML: it is nested too deeply")
        content = yaml.load(text, Loader=_Loader)
    except damaged as error:
        raise BadInput(f"{source} cannot be read as YAML: {_one_line(error)}") from None
    _check_extent(content, source)
    return content


def read_mapping(path: Path | str, *, missing: str = "") -> dict[str, Any]:
    """Reads a YAML file that holds a mapping, as `read_yaml`; an empty file is an empty mapping."""
    content = read_yaml(path, missing=missing)
    if not isinstance(content, dict | None):
        raise BadInput(f"{path} must hold a mapping at the top level, not {type(content).__name__}")
    return content or {}


def read_settings(kind: type[Settings], path: Path | str, *, missing: str) -> Settings:
    """Reads a YAML file into settings, as `read_yaml`; BadInput for an unknown key or impossible value."""
    from pydantic import ValidationError

    content = read_yaml(path, missing=missing)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise BadInput(f"{path}: {first_problem(error)}") from None


def first_problem(error: "ValidationError") -> str:
    """Says in a line what is wrong with the first wrong entry, and where."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"


def _check_extent(content: Any, source: str) -> None:
    """Refuses what aliases make endless or huge."""
    values, level = 0, [content]
    for _ in range(_DEEPEST + 1):
        values += len(level)
        if not level or values > _MOST_VALUES:
            break
        level = [value for each in level for value in _inside(each)]
    if level:
        raise BadInput(f"{source} cannot be read as YAML: its aliases mean too many values")


def _inside(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple | set) else ()


def _one_line(error: Exception) -> str:
    text = str(error).replace('in "<unicode string>", ', "at ")
    return " ".join(text.split())[:300] or type(error).__name__
