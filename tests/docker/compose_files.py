"""Compose files as Compose reads them: variables, `extends`, and several files laid over each other."""

import re
from typing import Any

import yaml

from tests.docker.test_make_secrets import DOCKER

VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?:(:[-?])([^}]*))?\}")
# Compose puts these lists together; any other list or value of a later file stands in the place of the first.
_JOINED = {"cap_drop", "networks", "ports", "secrets", "security_opt", "tmpfs", "volumes"}


class Override:
    """What stands behind `!override`: nothing of the earlier files is kept."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Loader(yaml.SafeLoader):
    def override(self, node: yaml.Node) -> Override:
        if isinstance(node, yaml.MappingNode):
            return Override(self.construct_mapping(node, deep=True))
        return Override(self.construct_sequence(node, deep=True))


_Loader.add_constructor("!override", _Loader.override)


def loaded(name: str, **values: str) -> dict:
    """One file, every variable of it set: to what is given, its default, or its own name as a path."""

    def value(match: re.Match) -> str:
        variable, kind, rest = match.groups()
        return values.get(variable) or (rest if kind == ":-" else f"/{variable}")

    text = VARIABLE.sub(value, (DOCKER / name).read_text())
    return yaml.load(text.replace("$$", "$"), _Loader)


def merged(*names: str, **values: str) -> dict:
    """Several files as one, the later over the earlier."""
    first, *others = (loaded(name, **values) for name in names)
    result = first
    for other in others:
        for service, settings in other["services"].items():
            if extended := settings.pop("extends", None):
                base = loaded(extended["file"], **values)["services"][extended["service"]]
                other["services"][service] = _laid("", base, settings)
        result = _laid("", result, other)
    return {key: part for key, part in result.items() if not key.startswith("x-")}


def _laid(key: str, below: Any, above: Any) -> Any:
    if isinstance(above, Override):
        return above.value
    if isinstance(below, dict) and isinstance(above, dict):
        return {
            name: _laid(name, below[name], above[name])
            if name in below and name in above
            else _plain(above.get(name, below.get(name)))
            for name in {**below, **above}
        }
    if key in _JOINED and isinstance(below, list) and isinstance(above, list):
        return below + [each for each in above if each not in below]
    return above


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Override) else value
