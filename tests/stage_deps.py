"""The code that each stage of dvc.yaml runs, read from its imports; `make deps` writes it there."""

import ast
import re
import sys
from functools import cache
from pathlib import Path

from pipeline.tools.dvc_graph import load_graph

ROOT = Path(__file__).parents[1]
# Loaded by every stage, and not worth training anew for: a test allows them next to no code.
BARE_PACKAGES = {"openmed/__init__.py", "pipeline/__init__.py"}
# Starts a stage and tells its errors; has no part in what a stage writes.
LAUNCHER = {"pipeline/__main__.py", "pipeline/tools/terminal.py"}
# What a module reads or starts beside what it imports.
_BESIDE = {
    "openmed/films/isolated.py": ["openmed/films/worker.py"],
    "pipeline/settings/expectations.py": ["pipeline/settings/expectations.yaml"],
    "pipeline/report/render.py": ["pipeline/report/templates"],
}


def code_of(stage: str) -> list[str]:
    """Returns files and folders, sorted, relative to the project: a folder where the stage runs all of it."""
    needed = reached(ROOT / "pipeline" / "stages" / f"{stage.partition('@')[0]}.py")
    return sorted({*_folded(ROOT / "openmed", needed), *_folded(ROOT / "pipeline", needed)})


def reached(file: Path) -> set[str]:
    """Returns the files that a file imports, and those that they import; no packages that hold nothing."""
    found, waiting = set(), {file}
    while waiting:
        found |= waiting
        waiting = set().union(*map(_needed, waiting)) - found
    paths = {path.relative_to(ROOT).as_posix() for path in found if path.stat().st_size}
    return paths - BARE_PACKAGES


def _needed(file: Path) -> set[Path]:
    beside = {ROOT / path for path in _BESIDE.get(file.relative_to(ROOT).as_posix(), [])}
    return beside | (_imported(file) if file.suffix == ".py" else set())


@cache
def _imported(file: Path) -> set[Path]:
    names = set()
    for node in _running(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports are not followed here"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parts = [name.split(".") for name in names]
    names |= {".".join(part[:length]) for part in parts for length in range(1, len(part))}
    return {path for path in map(_module_file, names) if path}


def _running(node: ast.AST):
    """Walks through code that runs: not through imports for type checkers alone."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for each in child.orelse:
                yield from _running(each)
        else:
            yield from _running(child)


def _module_file(name: str) -> Path | None:
    if name.split(".")[0] not in ("openmed", "pipeline"):
        return None
    place = ROOT.joinpath(*name.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _folded(folder: Path, needed: set[str]) -> list[str]:
    here = folder.relative_to(ROOT).as_posix()
    below = {path for path in needed if path == here or path.startswith(f"{here}/")}
    files = {path.relative_to(ROOT).as_posix() for path in folder.rglob("*.py") if path.stat().st_size}
    if here in needed or (below and files - BARE_PACKAGES <= below):
        return [here]
    kept = sorted(path for path in below if "/" not in path.removeprefix(f"{here}/"))
    folders = sorted(each for each in folder.iterdir() if each.is_dir() and each.name != "__pycache__")
    return kept + [path for each in folders for path in _folded(each, needed)]


def main() -> None:
    """Writes the code that each stage runs into dvc.yaml, in place of what stands there."""
    file = ROOT / "dvc.yaml"
    text = file.read_text()
    for stage in {name.partition("@")[0] for name in load_graph(file)}:
        block = re.search(rf"(?ms)^  {stage}:\n.*?(?=^  \w+:|\Z)", text)
        deps = re.search(r"(?m)^    deps:\n((?:      - .*\n)+)", block.group())
        kept = [line for line in deps[1].splitlines() if not re.match(r" +- (openmed|pipeline)\b", line)]
        lines = kept + [f"      - {path}" for path in code_of(stage)]
        changed = block.group().replace(deps[1], "\n".join(lines) + "\n")
        text = text.replace(block.group(), changed)
    file.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
