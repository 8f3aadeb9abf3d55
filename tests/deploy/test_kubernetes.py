"""What can be said of the manifests and the chart's values without a cluster."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.local.airflow_settings import AirflowSettings
from pipeline.settings.variables import SECRETS, Variables
from pipeline.tracking import doors

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
VALUES = yaml.safe_load((FOLDER / "airflow-values.yaml").read_text())
POD = yaml.safe_load(VALUES["podTemplate"])
GPU = yaml.safe_load((FOLDER / "gpu-pod.yaml").read_text())
MANIFESTS = [
    each
    for file in sorted(FOLDER.glob("*.yaml"))
    if file.name != "airflow-values.yaml"
    for each in yaml.safe_load_all(file.read_text())
]
NAMED = [each for each in MANIFESTS if each is not GPU and "metadata" in each]
PAGE = (ROOT / "docs" / "deployment.md").read_text()
VARIABLES = {str(field.validation_alias) for field in Variables.model_fields.values()}
kubernetes = pytest.mark.skipif(
    find_spec("kubernetes") is None, reason="the extra `distributed` is not installed: `make distributed`"
)


def kind(name: str) -> list[dict]:
    return [each for each in NAMED if each["kind"] == name]


def pods() -> dict[str, dict]:
    """Everything that becomes a pod by our own files: (labels, spec) by name."""
    own = {each["metadata"]["name"]: each["spec"]["template"] for each in kind("Deployment") + kind("Job")}
    return {**own, "task": POD}


def containers(spec: dict) -> list[dict]:
    return spec.get("initContainers", []) + spec["containers"]


def environment(container: dict) -> dict[str, str]:
    return {each["name"]: each.get("value") for each in container.get("env", [])}


# --- the schemas ---


def strictly(value: Any, wanted: str, where: str) -> None:
    """Holds a value to a type of the Kubernetes client: no other keys, every needed one, the right kinds."""
    from kubernetes import client

    if match := re.fullmatch(r"list\[(.+)\]", wanted):
        assert isinstance(value, list), where
        for number, each in enumerate(value):
            strictly(each, match[1], f"{where}[{number}]")
    elif match := re.fullmatch(r"dict\[str, (.+)\]", wanted):
        assert isinstance(value, dict), where
        for key, each in value.items():
            strictly(each, match[1], f"{where}.{key}")
    elif wanted in {"str", "int", "bool"}:
        assert type(value).__name__ == wanted, f"{where} is {value!r}, not {wanted}"
    elif wanted != "object":
        model = getattr(client, wanted)
        keys = {model.attribute_map[name]: (name, kind) for name, kind in model.openapi_types.items()}
        assert set(value) <= set(keys), f"{where} has {set(value) - set(keys)}"
        for key, each in value.items():
            strictly(each, keys[key][1], f"{where}.{key}")
        if wanted != "IntOrString":
            # The model itself refuses what lacks a needed key.
            model(**{keys[key][0]: each for key, each in value.items()})


TYPES = {"NetworkPolicy": "V1NetworkPolicy", "Deployment": "V1Deployment", "Job": "V1Job"}


@kubernetes
def test_every_manifest_and_pod_is_of_its_type_to_the_last_key():
    for each in [*MANIFESTS, POD]:
        name = each.get("metadata", {}).get("name", "gpu-pod")
        strictly(each, TYPES.get(each["kind"], f"V1{each['kind']}"), name)
    wrong = {"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "a", "imag": "b"}]}}
    with pytest.raises(AssertionError, match="imag"):
        strictly(wrong, "V1Pod", "wrong")
    with pytest.raises(ValueError, match="name"):
        strictly({"spec": {"containers": [{"image": "b"}]}}, "V1Pod", "wrong")


@kubernetes
def test_a_training_gets_a_gpu_and_keeps_everything_else_of_a_task():
    from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator

    pod = PodGenerator.reconcile_pods(
        PodGenerator.deserialize_model_dict(POD), PodGenerator.deserialize_model_dict(GPU)
    )
    (base,) = pod.spec.containers
    assert base.resources.limits == {"memory": "32Gi", "nvidia.com/gpu": "1"}
    assert base.image == VALUES["images"]["airflow"]["repository"] + ":" + VALUES["images"]["airflow"]["tag"]
    assert len(base.volume_mounts) == len(POD["spec"]["containers"][0]["volumeMounts"])
    assert pod.spec.node_selector and pod.spec.tolerations and pod.spec.init_containers


# --- rights and secrets ---


def test_no_pod_can_gain_rights_or_write_into_its_image():
    (namespace,) = kind("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, pod in pods().items():
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] == VALUES["uid"] == 50000, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        assert not [volume for volume in spec["volumes"] if "hostPath" in volume], name
        for container in containers(spec):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert container["resources"]["limits"]["memory"] and container["resources"]["requests"], name
    assert VALUES["securityContexts"]["pod"]["runAsNonRoot"] is True
    assert VALUES["securityContexts"]["containers"]["capabilities"] == {"drop": ["ALL"]}


def test_secrets_are_named_and_none_stands_here():
    assert not kind("Secret")
    for file in FOLDER.glob("*.yaml"):
        assert not re.search(r"//[^/@\s]*:[^/@\s]+@|BEGIN [A-Z ]*PRIVATE KEY", file.read_text()), file.name
    for pod in pods().values():
        for container in containers(pod["spec"]):
            for name, value in environment(container).items():
                if re.search("PASSWORD|SECRET|_KEY|CONN", name):
                    assert name.endswith(("_FILE", "_CMD")) and "/run/secrets/" in value, name
    for section in VALUES["config"].values():
        assert not [option for option in section if re.search("secret|_key|conn$|password$", option)]


def test_every_secret_that_is_named_is_made_by_a_command_of_the_page_with_the_keys_that_are_read():
    text = PAGE.replace("\\\n", " ")
    made = {
        name: set(re.findall(r"--from-(?:file|literal)=([\w.-]+)=", rest))
        for name, rest in re.findall(r"kubectl .*?create secret generic ([\w-]+)(.*)", text)
    }
    used = {VALUES["data"]["metadataSecretName"], VALUES["dags"]["gitSync"]["sshKeySecret"]}
    used |= {VALUES[key] for key in ("fernetKeySecretName", "apiSecretKeySecretName", "jwtSecretName")}
    specs = [pod["spec"] for pod in pods().values()]
    volumes = [volume for spec in specs for volume in spec["volumes"]]
    volumes += VALUES["volumes"] + VALUES["apiServer"]["extraVolumes"]
    used |= {volume["secret"]["secretName"] for volume in volumes if "secret" in volume}
    assert used == set(made)
    # The keys that the chart looks for.
    assert made["airflow-metadata"] == {"connection"} and made["airflow-fernet"] == {"fernet-key"}
    assert made["airflow-api"] == {"api-secret-key"} and made["airflow-jwt"] == {"jwt-secret"}
    assert made["openmed-git"] >= {"gitSshKey", "known_hosts"}
    for spec in specs:
        places = {
            mount["mountPath"]: volume["secret"]["secretName"]
            for container in containers(spec)
            for mount in container["volumeMounts"]
            for volume in spec["volumes"]
            if volume["name"] == mount["name"] and "secret" in volume and "subPath" not in mount
        }
        for folder, key in re.findall(r"(/run/secrets/[\w-]+)/([\w.]+)", str(spec)):
            assert key in made[places[folder]], (folder, key)


# --- what fits together ---


def test_every_volume_that_is_mounted_is_there_and_none_is_idle():
    for name, pod in pods().items():
        mounted = {mount["name"] for each in containers(pod["spec"]) for mount in each["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}, name


def test_all_run_one_image_from_one_repository():
    image = "{repository}:{tag}".format(**VALUES["images"]["airflow"])
    found = {each["image"] for pod in pods().values() for each in containers(pod["spec"])}
    found |= {each["image"] for each in VALUES["apiServer"]["extraInitContainers"]}
    assert found == {image}
    addresses = set(re.findall(r"git@[\w.]+:[\w./-]+", str([VALUES, MANIFESTS])))
    assert addresses == {VALUES["dags"]["gitSync"]["repo"]}


def test_tasks_and_dag_files_agree_on_the_project_its_queue_and_its_reviewers():
    task = environment(POD["spec"]["containers"][0])
    common = {each["name"]: each["value"] for each in VALUES["env"]}
    assert common.items() <= task.items()
    checkout = common["OPENMED_PROJECT"]
    assert common["PYTHONPATH"] == checkout and common["OPENMED_GPU_QUEUE"] == "gpu"
    assert (ROOT / Path(common["OPENMED_GPU_POD"]).relative_to(checkout)) == FOLDER / "gpu-pod.yaml"
    named = {
        name for pod in pods().values() for each in containers(pod["spec"]) for name in environment(each)
    }
    ours = {name.removesuffix("_FILE") for name in named | set(common) if name.startswith("OPENMED_")}
    assert {name for name in ours if "REVIEWERS" not in name} <= VARIABLES
    assert {
        name.removesuffix("_FILE") for name in named if name.endswith("_FILE") and "OPENMED" in name
    } <= set(SECRETS)


def test_options_are_airflows_and_as_the_laptop_has_them():
    package = Path(find_spec("airflow").submodule_search_locations[0])
    known = yaml.safe_load((package / "config_templates" / "config.yml").read_text())
    for section, options in VALUES["config"].items():
        if section != "kubernetes_executor":
            assert set(options) <= set(known[section]["options"]), section
    own = AirflowSettings(ROOT, ROOT, 8080, None, 4)._sections({"jwt": "", "session": ""})
    users = VALUES["config"]["core"]["simple_auth_manager_users"].split(",")
    assert sorted(users) == sorted(own["core"]["simple_auth_manager_users"].split(","))
    for section in ("workers",):
        assert {key: str(value) for key, value in own[section].items()} == VALUES["config"][section]
    assert str(own["api"]["expose_config"]) == VALUES["config"]["api"]["expose_config"]


def test_policies_start_from_nothing_and_tasks_reach_no_database():
    policies = {each["metadata"]["name"]: each["spec"] for each in kind("NetworkPolicy")}
    assert policies["nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    reached = {
        name: {port["port"] for rule in spec.get("egress", []) for port in rule["ports"]}
        for name, spec in policies.items()
    }
    assert 5432 not in reached["tasks"] and reached["tasks"] == {8080, 5000, 443, 22}
    assert {name for name, ports in reached.items() if 5432 in ports} == {"airflow", "pools", "mlflow"}
    assert policies["airflow"]["podSelector"]["matchExpressions"][0] == {
        "key": "component",
        "operator": "NotIn",
        "values": ["worker"],
    }
    labels = [pod["metadata"]["labels"] for pod in pods().values()]
    labels += [{"tier": "airflow", "release": "openmed", "component": "api-server"}]
    selectors = re.findall(r"'matchLabels': (\{[^{}]*\})", str(policies))
    for selector in (yaml.safe_load(each) for each in selectors):
        if "kubernetes.io/metadata.name" not in selector:
            assert any(selector.items() <= each.items() for each in labels), selector
    (service,), (deployment,) = kind("Service"), kind("Deployment")
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    assert environment(POD["spec"]["containers"][0])["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"


def test_mlflow_asks_for_a_password_and_understands_its_command():
    from mlflow.cli import cli

    (container,) = kind("Deployment")[0]["spec"]["template"]["spec"]["containers"]
    script = container["command"][2]
    *_, start = script.strip().splitlines()
    arguments = start.removeprefix("exec mlflow server ").split()
    options = cli.commands["server"].make_context("server", arguments).params
    assert options["app_name"] == "basic-auth" and options["workers"] == "1"
    assert "mlflow:5000" in options["allowed_hosts"].split(",")
    assert environment(container)["MLFLOW_BASIC_AUTH_FAIL_CLOSED"] == "true"
    home = Path(environment(container)["OPENMED_HOME"])
    assert str(doors.password_file(home)) in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert 'BACKEND_STORE_URI="$(cat ' in script and "secret" not in start


def test_the_pools_that_the_dags_use_are_made():
    (container,) = kind("Job")[0]["spec"]["template"]["spec"]["containers"]
    made = set(re.findall(r"^airflow pools set (\w+)", container["command"][2], re.MULTILINE))
    sources = "".join(path.read_text() for path in (ROOT / "dags").glob("*.py"))
    assert made == set(re.findall(r'pool="(\w+)"', sources)) | set(re.findall(r'"(gpu)" if', sources))
