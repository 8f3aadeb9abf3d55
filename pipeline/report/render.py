"""Self-contained HTML pages: no script, no font, no picture from anywhere else."""

import base64
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_TOOLS = (
    "torch",
    "torchvision",
    "timm",
    "scikit-learn",
    "imbalanced-learn",
    "great-expectations",
    "mlflow",
    "dvc",
)


def render(template: str, **content: Any) -> str:
    """Fills a template of the folder beside this file, such as expectations.html; text is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.tests["nan"] = lambda number: number != number
    return environment.get_template(template).render(**content)


def picture(data: bytes, kind: str) -> str:
    """Turns picture bytes (kind jpeg, png or svg+xml) into an address that holds them."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def tool_versions() -> dict[str, str]:
    """Versions of the tools that a result depends on."""
    return {name: version(name) for name in _TOOLS}


def _number(value: float | None, digits: int = 3) -> str:
    return "not computable" if value is None or value != value else f"{value:.{digits}f}"
