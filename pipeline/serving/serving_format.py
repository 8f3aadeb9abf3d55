"""How a model is put into the store so that MLflow can serve it.

Hides MLflow's model format: the model folder, the code of `openmed`, the versions it needs, a signature.
"""

import tempfile
from importlib.metadata import version as installed_version
from pathlib import Path

_SERVED_WITH = (
    *("mlflow", "numpy", "onnxruntime", "opencv-python-headless", "pandas", "pillow", "safetensors"),
    *("simplejpeg", "timm", "torch", "pydicom", "pylibjpeg", "pylibjpeg-openjpeg", "python-gdcm"),
)


def log_model(run_id: str, folder: Path) -> str:
    """Logs a model folder so that MLflow can serve it; returns the id of the logged model."""
    import cv2
    import mlflow
    import numpy as np
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Map

    import openmed

    numbers, text = Map(DataType.double), DataType.string
    outputs = {"label": text, "probability": DataType.double, "threshold": DataType.double}
    outputs |= {"probabilities": numbers, "thresholds": numbers}
    may_lack = {"refer": DataType.boolean, "reason": text, "model": text, "warning": text}
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema(
            [ColSpec(kind, name) for name, kind in outputs.items()]
            + [ColSpec(kind, name, required=False) for name, kind in may_lack.items()]
        ),
    )
    blank = cv2.imencode(".png", np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1)))[1].tobytes()
    code = Path(openmed.__file__).parent
    with mlflow.start_run(run_id=run_id, log_system_metrics=False):
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("serving.py")),
            artifacts={"model": folder.resolve().as_uri()},
            code_paths=[str(code)],
            # A local build such as 2.11.0+cpu is not a version that an index knows.
            pip_requirements=[f"{name}=={installed_version(name).split('+')[0]}" for name in _SERVED_WITH],
            signature=signature,
            input_example=pd.DataFrame({"image": [blank]}),
        )
    with tempfile.TemporaryDirectory() as temporary:
        _keep_bytecode_out(Path(temporary), code)
        mlflow.MlflowClient().log_model_artifacts(logged.model_id, temporary)
    return logged.model_id


def _keep_bytecode_out(target: Path, code: Path) -> None:
    """Writes an empty file `__pycache__` for every folder of stored code.

    MLflow runs the code where it is stored. Python would put a folder of that name there, and run what lies
    in it the next time; where a file has the name it does neither, and no bytecode can be put in unnoticed.
    """
    folders = {Path(), *(Path("code") / path.parent.relative_to(code.parent) for path in code.rglob("*.py"))}
    for folder in folders:
        (target / folder).mkdir(parents=True, exist_ok=True)
        (target / folder / "__pycache__").touch()
