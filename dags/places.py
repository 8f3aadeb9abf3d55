"""Where tasks run: the queue of each, and on Kubernetes what the pods of trainings have beyond the others."""

from typing import Any

from airflow.sdk.exceptions import AirflowException

from openmed.errors import BadInput
from pipeline.settings.variables import variables
from pipeline.settings.yaml_file import read_mapping


def place(training: bool) -> dict[str, Any]:
    """Returns the arguments of a task that say where it runs.

    The queue is OPENMED_GPU_QUEUE or `default`; the pod of OPENMED_GPU_POD is laid over that of all tasks.

    Raises:
        BadInput: The file holds no pod.
        AirflowException: The extra `distributed` is not installed.
    """
    if not training:
        return {"queue": "default"}
    named = variables()
    if (file := named.gpu_pod) is None:
        return {"queue": named.gpu_queue}
    try:
        from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator
    except ImportError as error:
        raise AirflowException("OPENMED_GPU_POD needs the extra `distributed`: `make distributed`") from error
    pod = read_mapping(file)
    if pod.get("kind") != "Pod":
        raise BadInput(f"OPENMED_GPU_POD names {file}, which holds no Kubernetes pod (kind: Pod)")
    override = PodGenerator.deserialize_model_dict(pod)
    return {"queue": named.gpu_queue, "executor_config": {"pod_override": override}}
