"""The model as MLflow serves it. MLflow stores this very file with each version and runs it to load one.

So that a stored version can be served without this repository, it uses nothing but `openmed`, which is
stored beside it, and MLflow.
"""

from pathlib import Path

import mlflow.models
import mlflow.pyfunc
import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException

from openmed.data.images import usable_squares
from openmed.errors import BadInput
from openmed.models.referral import Referral, referrals, unlike_reasons
from openmed.models.session import called_classes, load_predictor
from openmed.models.spec import ModelSpec

_BATCH_FILMS = 32


class FilmClassifier(mlflow.pyfunc.PythonModel):
    """Classifies film files with a model folder (safetensors, JSON and ONNX, never a pickle)."""

    def load_context(self, context) -> None:
        """Loads the model folder stored with the version: the exported graph on a CPU, PyTorch on a GPU.

        Raises:
            IntegrityError: Weights or graph are not those that were stored.
            BadInput: The model has no operating threshold.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = load_predictor(Path(context.artifacts["model"]), device)
        if self._model.spec.threshold is None:
            raise BadInput(
                "the model has no operating threshold: run the evaluate stage and register it again"
            )

    def predict(self, context, model_input: pd.DataFrame, params=None) -> pd.DataFrame:
        """Classifies films.

        Args:
            context: Unused; MLflow passes it.
            model_input: Column image: the bytes of a JPEG, PNG, TIFF or DICOM file, one film a row.
            params: Unused; MLflow passes it.

        Returns:
            One row a film: label (the finding whose probability reaches its threshold, else the most
            probable other class), probability (of the first finding, 0..1), threshold (0..1), the same as
            probability_<CLASS> and threshold_<CLASS> of each further finding, refer (whether a radiologist
            should decide instead, None for a model that refers none), reason (why, in words, None where it
            is not referred).

        Raises:
            MlflowException: A row is not a usable film (HTTP status 400 where the model is served).
        """
        if "image" not in getattr(model_input, "columns", ()):
            raise MlflowException.invalid_parameter_value(
                "the input needs a column 'image' with the bytes of one film in each row"
            )
        images = list(model_input["image"])
        parts = [self._batch(images, start) for start in range(0, len(images), _BATCH_FILMS)]
        if not parts:
            return self._table(np.zeros((0, len(self._model.spec.class_names))), None)
        return pd.concat(parts, ignore_index=True)

    def _batch(self, images: list[bytes], start: int) -> pd.DataFrame:
        rows = range(start, min(start + _BATCH_FILMS, len(images)))
        films = np.stack([_decoded(images[row], row, self._model.spec) for row in rows])
        probabilities, distances = self._model.assess(films)
        return self._table(probabilities, unlike_reasons(self._model, films, distances))

    def _table(self, probabilities: np.ndarray, unlike: list[str | None] | None) -> pd.DataFrame:
        spec = self._model.spec
        positive = probabilities[:, spec.positive_index].astype(np.float64)
        called = called_classes(spec, probabilities, spec.threshold)
        referred: list[Referral] = referrals(spec, probabilities, called, unlike)
        return pd.DataFrame(
            {
                "label": np.array(spec.class_names)[called].astype(object),
                "probability": positive,
                "threshold": np.full(len(positive), spec.threshold),
                **_further(spec, probabilities),
                "refer": pd.Series([each.refer for each in referred], dtype=object),
                "reason": pd.Series([each.reason for each in referred], dtype=object),
            }
        )


def _further(spec: ModelSpec, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    columns = {}
    for name, threshold in spec.further_thresholds.items():
        own = probabilities[:, spec.class_names.index(name)].astype(np.float64)
        columns |= {f"probability_{name}": own, f"threshold_{name}": np.full(len(own), threshold)}
    return columns


def _decoded(image: object, row: int, spec: ModelSpec) -> np.ndarray:
    if not isinstance(image, bytes | bytearray):
        raise MlflowException.invalid_parameter_value(
            f"the image in row {row} is {type(image).__name__}, not the bytes of a film's file"
        )
    try:
        name = f"the image in row {row}"
        return usable_squares(bytes(image), [spec.image_size_px], name, min_side_px=spec.min_side_px)[0]
    except BadInput as error:
        raise MlflowException.invalid_parameter_value(str(error)) from None


mlflow.models.set_model(FilmClassifier())
