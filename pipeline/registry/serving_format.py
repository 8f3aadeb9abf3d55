"""How a model is put into the store so that MLflow can serve it.

Hides MLflow's model format: the model folder, the versions it needs, a signature, and the name of the
installed module that loads it. No code is stored, since whoever can put code there has it run by others.
"""

from importlib.metadata import version as installed_version
from pathlib import Path

DATA_FOLDER = "data/model"
_LOADER = "pipeline.serving.serving"
_SERVED_WITH = (
    *("mlflow", "numpy", "onnxruntime", "opencv-python-headless", "pandas", "pillow", "safetensors"),
    *("simplejpeg", "timm", "torch", "pydicom", "pylibjpeg", "pylibjpeg-openjpeg", "python-gdcm"),
)


def log_model(run_id: str, folder: Path) -> str:
    """Logs a model folder, `model`, so that MLflow can serve it; returns the id of the logged model."""
    import cv2
    import mlflow
    import numpy as np
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Map

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
    with mlflow.start_run(run_id=run_id, log_system_metrics=False):
        logged = mlflow.pyfunc.log_model(
            name="model",
            loader_module=_LOADER,
            data_path=str(folder.resolve()),
            # A local build such as 2.11.0+cpu is not a version that an index knows.
            pip_requirements=[f"{name}=={installed_version(name).split('+')[0]}" for name in _SERVED_WITH],
            signature=signature,
            input_example=pd.DataFrame({"image": [blank]}),
        )
    return str(logged.model_id)
