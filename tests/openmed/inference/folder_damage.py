"""Damages that a stored model folder may have: of its description, its tensors, its graph and its files."""

import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx

from openmed.files import sha256_file
from openmed.fitted.feature_statistics import STATISTICS_FILE
from openmed.inference.checkpoint import EXPORT_FILE, SPEC_FILE, WEIGHTS_FILE
from openmed.inference.control import CONTROL_FILE
from tests.openmed.films.fuzzing import mutant

FILES = (SPEC_FILE, WEIGHTS_FILE, EXPORT_FILE, CONTROL_FILE, STATISTICS_FILE)
_TWIN = "~twin~"
_NAN, _INF = float("nan"), float("inf")
_VALUES = (
    *(_NAN, _INF, -_INF, -1, 0, 1, 0.5, 2, 1e-320, 1e308, -1e308, 2**31, 2**63, 10**400),
    *(True, False, None, "", "0.5", "x" * 5000, "\ud800", "a\nb", "../../../etc/passwd", "vit", "NORMAL"),
    *([], [0.5], [None], {}, {"x": {"y": 1}}, [[[[]]]]),
)
_NUMBERS = (_NAN, _INF, -_INF, 0.0, -1.0, 1.0, 1e30, -1e30, 3.4e38, 1e-42)
_SIZES = (-1, 0, 1, 2, 7, 3000, 2**31 - 1, 2**31, 2**40, 2**63 - 1)


def damage(folder: Path, name: str, other: Path, draw: random.Random) -> None:
    """Damages one file of a model folder.

    Args:
        folder: The model folder.
        name: The file.
        other: Folder of another model, whose file may take its place.
        draw: Decides how.
    """
    path, way = folder / name, draw.randrange(20)
    if way == 0:
        _FILE_DAMAGES[draw.choice(list(_FILE_DAMAGES))](path)
        return
    if way == 1:
        content = (other / name).read_bytes() if (other / name).exists() else b""
    elif way < 6:
        content = mutant(path.read_bytes(), str(draw.random()))
    elif name == SPEC_FILE:
        content = _json(path.read_bytes(), draw)
    else:
        content = (_graph if name == EXPORT_FILE else _tensors)(path.read_bytes(), draw)
    # The intact folder may be linked here.
    path.unlink()
    path.write_bytes(content)


def seal(folder: Path, name: str) -> None:
    """Puts the hash of a damaged file into the description, so that what lies behind the hashes meets it."""
    path = folder / name
    if name == SPEC_FILE or not path.is_file():
        return
    content = json.loads((folder / SPEC_FILE).read_text())
    holder, key = {
        WEIGHTS_FILE: (content, "weights_sha256"),
        EXPORT_FILE: (content, "export_sha256"),
        CONTROL_FILE: (content, "control_sha256"),
        STATISTICS_FILE: (content["spec"]["novelty"], "statistics_sha256"),
    }[name]
    holder[key] = sha256_file(path)
    (folder / SPEC_FILE).unlink()
    (folder / SPEC_FILE).write_text(json.dumps(content))


def _folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe_instead(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _loop_instead(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _empty(path: Path) -> None:
    path.unlink()
    path.touch()


_FILE_DAMAGES: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "empty": _empty,
    "folder": _folder_instead,
    "pipe": _pipe_instead,
    "loop": _loop_instead,
}


def _json(content: bytes, draw: random.Random) -> bytes:
    """Drops, doubles, renames or changes one entry, at any depth."""
    described = json.loads(content)
    holder, key = draw.choice(list(_entries(described)))
    way = draw.randrange(8)
    if way == 0:
        del holder[key]
    elif way == 1 and isinstance(holder, dict):
        holder[f"{key}{_TWIN}"] = draw.choice([holder[key], *_VALUES])
    elif way == 2 and isinstance(holder, dict):
        holder[f"{key}s"] = holder.pop(key)
    elif way < 5:
        holder[key] = _near(holder[key], draw)
    else:
        holder[key] = draw.choice(_VALUES)
    return json.dumps(described).replace(_TWIN, "").encode()


def _entries(content: Any) -> Iterator[tuple[Any, Any]]:
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in pairs:
        yield content, key
        if isinstance(value, dict | list):
            yield from _entries(value)


def _near(value: Any, draw: random.Random) -> Any:
    if isinstance(value, str):
        place = draw.randrange(len(value) + 1)
        return value[:place] + draw.choice("0aZ_\0") + value[place + 1 :]
    if isinstance(value, list):
        return draw.choice([value[::-1], value[1:], value * 2])
    if isinstance(value, int | float):
        return draw.choice([value * draw.uniform(0.5, 2), value + 1, -value, str(value), [value]])
    return draw.choice([[value], {"value": value}, not value])


def _tensors(content: bytes, draw: random.Random) -> bytes:
    """Damages a safetensors file: its header, the header's length, one number, a bit or a block."""
    size = int.from_bytes(content[:8], "little")
    length, header, data = content[:8], content[8 : 8 + size], bytearray(content[8 + size :])
    place = 4 * draw.randrange(len(data) // 4)
    match draw.randrange(8):
        case 0 | 1:
            header = _json(header, draw)
            length = len(header).to_bytes(8, "little")
        case 2:
            length = (draw.choice([size + 1, size - 1, *_SIZES]) % 2**64).to_bytes(8, "little")
        case 3 | 4:
            struct.pack_into("<f", data, place, draw.choice(_NUMBERS))
        case 5:
            data[place] ^= 1 << draw.randrange(8)
        case 6:
            # The number's exponent.
            data[place + 3] ^= 1 << draw.randrange(8)
        case 7:
            block = data[place : place + draw.randrange(4, 400)]
            start = draw.randrange(len(data) - len(block) + 1)
            data[start : start + len(block)] = block
    return length + header + bytes(data)


def _graph(content: bytes, draw: random.Random) -> bytes:
    """Damages an ONNX graph: a constant, its shape or type, a node, an edge or a version."""
    model = onnx.load_from_string(content)
    nodes = model.graph.node
    node, constant = draw.choice(nodes), draw.choice(model.graph.initializer)
    match draw.randrange(9):
        case 0 | 1:
            data = bytearray(constant.raw_data)
            struct.pack_into("<f", data, 4 * draw.randrange(len(data) // 4), draw.choice(_NUMBERS))
            constant.raw_data = bytes(data)
        case 2:
            constant.dims[:] = [draw.choice(_SIZES) for _ in constant.dims] or [draw.choice(_SIZES)]
        case 3:
            constant.data_type = draw.randrange(0, 24)
        case 4:
            constant.data_location = onnx.TensorProto.EXTERNAL
            constant.external_data.add(key="location", value=draw.choice(["/etc/passwd", WEIGHTS_FILE]))
        case 5:
            node.op_type = draw.choice([*(each.op_type for each in nodes), "Loop", "Expand", "Tile", "x"])
        case 6:
            node.input[:] = [draw.choice([each.output[0], *node.input]) for each in draw.choices(nodes, k=2)]
        case 7:
            _change_attribute(node, draw)
        case 8:
            model.opset_import[0].version = draw.choice(_SIZES)
            model.ir_version = draw.choice([model.ir_version, *_SIZES])
    return model.SerializeToString()


def _change_attribute(node: onnx.NodeProto, draw: random.Random) -> None:
    if not node.attribute:
        node.attribute.add(name="axis", i=draw.choice(_SIZES), type=onnx.AttributeProto.INT)
        return
    attribute = draw.choice(node.attribute)
    attribute.i = draw.choice(_SIZES)
    attribute.ints[:] = [draw.choice(_SIZES) for _ in attribute.ints]
    if attribute.t.raw_data:
        size = len(attribute.t.raw_data)
        attribute.t.raw_data = (draw.choice(_SIZES).to_bytes(8, "little", signed=True) * size)[:size]


def linked(intact: Path, folder: Path) -> Path:
    """Makes a folder of links to the files of another, each of which can be replaced."""
    return Path(shutil.copytree(intact, folder, copy_function=os.link))
