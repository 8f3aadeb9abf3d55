"""The command `openmed`."""

import sys
from importlib.util import find_spec


def main() -> None:
    """Runs the command; where the library alone is installed, says what it needs and exits with 4."""
    if not all(map(find_spec, ("typer", "dvc", "mlflow"))):
        sentence = "the command needs more than the library: pip install 'openmed-cxr[pipeline]'"
        print(f"openmed: {sentence}", file=sys.stderr)
        sys.exit(4)
    from pipeline.commands.app import main as run

    run()
