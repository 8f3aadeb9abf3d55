"""Where the tasks run: queues, and the pods of trainings on Kubernetes."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from places import place

from openmed.errors import BadInput

ROOT = Path(__file__).parents[2]
POD = """
apiVersion: v1
kind: Pod
spec:
  containers:
    - name: base
      resources: {limits: {nvidia.com/gpu: 1}}
  nodeSelector: {accelerator: nvidia}
"""
kubernetes = pytest.mark.skipif(
    find_spec("kubernetes") is None, reason="the extra `distributed` is not installed: `make distributed`"
)


def queues():
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(dag_folder=str(ROOT / "dags"))
    assert bag.import_errors == {}
    return {task.task_id: task.queue for dag in bag.dags.values() for task in dag.tasks}


def test_trainings_go_to_the_gpu_queue_and_everything_else_to_default(monkeypatch):
    monkeypatch.setenv("OPENMED_GPU_QUEUE", "gpu")
    found = queues()
    trainings = {name for name in found if name.startswith("train.")}
    assert len(trainings) >= 3
    assert {name for name, queue in found.items() if queue == "gpu"} == trainings
    assert set(found.values()) == {"gpu", "default"}


def test_without_a_setting_one_worker_serves_all(monkeypatch):
    monkeypatch.delenv("OPENMED_GPU_QUEUE", raising=False)
    assert place(True) == place(False) == {"queue": "default"}


@pytest.mark.parametrize("name", ["gpu;drop", "-gpu", "a b", "gpu,default"])
def test_a_queue_has_one_plain_name(monkeypatch, name):
    monkeypatch.setenv("OPENMED_GPU_QUEUE", name)
    with pytest.raises(BadInput, match="OPENMED_GPU_QUEUE"):
        place(True)


@kubernetes
def test_the_pod_of_a_training_is_laid_over_that_of_all_tasks(tmp_path, monkeypatch):
    from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator

    file = tmp_path / "gpu.yaml"
    file.write_text(POD)
    monkeypatch.setenv("OPENMED_GPU_POD", str(file))
    assert "executor_config" not in place(False)
    base = PodGenerator.deserialize_model_dict(
        {"spec": {"containers": [{"name": "base", "image": "openmed", "resources": {"limits": {"cpu": 2}}}]}}
    )
    pod = PodGenerator.reconcile_pods(base, place(True)["executor_config"]["pod_override"])
    assert pod.spec.containers[0].image == "openmed"
    assert pod.spec.containers[0].resources.limits == {"nvidia.com/gpu": "1"}
    assert pod.spec.node_selector == {"accelerator": "nvidia"}


@kubernetes
def test_a_file_without_a_pod_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "gpu.yaml"
    file.write_text("kind: Deployment\n")
    monkeypatch.setenv("OPENMED_GPU_POD", str(file))
    with pytest.raises(BadInput, match=r"gpu\.yaml, which holds no Kubernetes pod"):
        place(True)
