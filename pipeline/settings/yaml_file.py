"""The one way YAML is read: whole, bounded, as it looks; whatever is wrong with it becomes one sentence.

Of a key that stands twice YAML's own loader takes the later one: a second `reviewers:` would take a reviewer
away. So nothing is read that says one thing to a person and another to a program.
"""

import json
import re
import stat
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from openmed.errors import BadInput
from openmed.files import write_text

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

Settings = TypeVar("Settings", bound="BaseModel")
_LONGEST_BYTES = 16 << 20
# Aliases can make a short file mean an endless one; no file of this project comes near.
_DEEPEST, _MOST_VALUES = 50, 1_000_000


# Controls, marks of direction, what has no width, and line breaks that only YAML 1.1 knows: a line of
# settings would stand in what looks like a comment.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff]|\r(?!\n)"
)
_DECIMAL = re.compile(r"[-+]?(0|[1-9]\d*)?(\.\d*)?([eE][-+]?\d+)?|[-+]?\.inf|\.nan", re.ASCII | re.IGNORECASE)
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.CSafeLoader):
    """The safe loader in C, which refuses a key that stands twice in a mapping, merged into it or not.

    `yes`, `no`, `on` and `off` are words, as for DVC (YAML 1.2), and not truth values.
    """

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            name = self.construct_object(key)
            if isinstance(name, str):
                name = unicodedata.normalize("NFKC", _UNSEEN.sub("", name))
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands there twice", key.start_mark
                )
            seen.add(name)

    def decimal(self, node: yaml.ScalarNode) -> int | float:
        """Refuses 010, 1_000 and 1:30, which are 8, 1000 and 90 to some readers and not to others."""
        if not _DECIMAL.fullmatch(node.value):
            message = f"{node.value} is not read alike everywhere: write a decimal number"
            raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)
        return self.construct_yaml_int(node) if node.tag == f"{_TAG}int" else self.construct_yaml_float(node)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag != f"{_TAG}bool"]
    for first, known in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}bool", re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF"))
for _kind in ("int", "float"):
    _Loader.add_constructor(f"{_TAG}{_kind}", _Loader.decimal)


def read_yaml(path: Path | str, *, missing: str = "") -> Any:
    """Reads a YAML file, None for an empty one; `missing` is said of an absent file, after its name.

    Raises:
        BadInput: It is not there, cannot be read, is no YAML, is too long or too deep, or has a key twice, a
            tag, characters that cannot be seen, or numbers that are not read alike everywhere.
    """
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LONGEST_BYTES:
            raise BadInput(
                f"{path} is no file, or longer than {_LONGEST_BYTES >> 20} MiB: that holds no settings"
            )
        # A text file's own line breaks would be made alike first.
        text = Path(path).read_bytes().decode("utf-8")
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
    if unseen := _UNSEEN.search(text, text.startswith("\ufeff")):
        line = text.count("\n", 0, unseen.start()) + 1
        raise BadInput(
            f"{source} cannot be read as YAML: line {line} holds a character that cannot be seen "
            f"(U+{ord(unseen[0]):04X}), behind which settings could hide"
        )
    try:
        # Before it is composed: at 100,000 levels that ends the process.
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag:
                raise yaml.YAMLError(f"a tag ({event.tag}) stands there, and none is needed")
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


def set_values(path: Path, values: Mapping[str, Any]) -> None:
    """Overrides values of a settings file, by dotted key; every other character of it stays as it is.

    Raises:
        BadInput: The file has no such key, or cannot be read; nothing is changed then.
    """
    read_yaml(path)
    text, replacements = path.read_text(encoding="utf-8"), {}
    for dotted, value in values.items():
        node = _node(yaml.compose(text), dotted)
        if node is None:
            raise BadInput(f"{path.name} has no setting '{dotted}'; name one that it holds")
        # JSON is YAML, and quotes a text that YAML would take for a number.
        replacements[node.start_mark.index, node.end_mark.index] = json.dumps(value)
    for (start, end), new in sorted(replacements.items(), reverse=True):
        # A key without a value, which is null, has its place right behind the colon.
        text = text[:start] + (" " if text[start - 1] == ":" else "") + new + text[end:]
    if values:
        write_text(path, text)


def first_problem(error: "ValidationError") -> str:
    """Says in a line what is wrong with the first wrong entry, and where."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"


def _node(node: yaml.Node | None, dotted: str) -> yaml.Node | None:
    """Finds the value of a dotted key in a parsed file."""
    for part in dotted.split("."):
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        node = next((value for key, value in pairs if key.value == part), None)
    return node


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
