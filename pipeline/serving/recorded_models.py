"""Models as MLflow fetches them from models:/openmed-cxr..., held against the record of decisions first.

MLflow reads what a stored model says of itself, and runs the module that it names: what was changed in the
store has to be refused before. MLflow finds this class by an entry point of the installed package.
"""

import atexit
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository

# Copies, which MLflow reads for as long as it likes.
_COPIES = ExitStack()
atexit.register(_COPIES.close)


class RecordedModels(ModelsArtifactRepository):
    """What MLflow fetches at a models:/ address; of other models than ours just that."""

    model_name: str | None
    model_version: str | None

    def download_artifacts(
        self, artifact_path: str, dst_path: str | None = None, lineage_header_info: Any = None
    ) -> str:
        """Gives the files of a version as MLflow does, but always as a checked copy.

        Raises:
            BadInput: The state folder is unknown, an alias leads to a version on hold, or the version would
                have code of its own run.
            IntegrityError: A file of the version was changed, added or lost, or the alias was moved by
                something else.
        """
        from openmed.errors import BadInput
        from pipeline import registry
        from pipeline.settings.project import home
        from pipeline.settings.variables import variables

        # MLflow also gives the model of a version at models:/m-..., a name of its own for what is stored.
        stored = self.artifact_uri.partition(":/")[2].strip("/") if self.is_logged_model_uri else None
        if stored is None and self.model_name != registry.MODEL_NAME:
            return super().download_artifacts(artifact_path, dst_path, lineage_header_info)
        try:
            home()
        except BadInput:
            raise BadInput(
                f"{self.artifact_uri} answers no films where neither the record of decisions nor a place for "
                "its answers is known: set OPENMED_HOME to the state folder"
            ) from None
        if stored is None:
            version = registry.resolve(self.artifact_uri, on_hold_too=variables().serve_on_hold == "yes")
        elif (found := registry.version_of(stored)) is not None:
            version = found
        else:
            return super().download_artifacts(artifact_path, dst_path, lineage_header_info)
        folder = _COPIES.enter_context(registry.stored_whole(version))
        if not (folder / registry.DATA_FOLDER).is_dir():
            raise BadInput(
                f"version {version} was registered with code of its own, which MLflow would run: use it with "
                "`openmed predict` or `openmed live score`, or retrain to serve it"
            )
        self.model_name, self.model_version = registry.MODEL_NAME, version
        self._add_registered_model_meta_file(folder)
        asked = folder / artifact_path
        if dst_path is None:
            return str(asked)
        target = Path(dst_path, asked.name) if artifact_path else Path(dst_path)
        if asked.is_dir():
            shutil.copytree(asked, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(asked, target)
        return str(target)
