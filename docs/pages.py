"""Pages that are written elsewhere: the README and its neighbours, and one for each folder of code."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
NEIGHBOURS = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "docker/README.md": "docker.md",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the folders of code into the navigation."""
    for package, title in (("openmed", "Library"), ("pipeline", "Application")):
        config.nav.append({title: [f"api/{name}.md" for name in _modules(package)]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages."""
    for source, page in NEIGHBOURS.items():
        files.append(File.generated(config, page, content=_linked((ROOT / source).read_text())))
    for package in ("openmed", "pipeline"):
        for name in _modules(package):
            text = f"# {name}\n\n::: {name}\n"
            files.append(File.generated(config, f"api/{name}.md", content=text))
    return files


def _modules(package: str) -> list[str]:
    """The folders of a package, and the modules beside them."""
    names = {path.stem for path in (ROOT / package).iterdir() if path.suffix == ".py" or path.is_dir()}
    return [f"{package}.{name}" for name in sorted(names) if not name.startswith("_")]


def _linked(text: str) -> str:
    """Lets links of the repository's root lead to the pages."""
    text = text.replace("](docs/", "](")
    return re.sub(r"\]\(([\w./]+)\)", lambda match: f"]({NEIGHBOURS.get(match[1], match[1])})", text)
