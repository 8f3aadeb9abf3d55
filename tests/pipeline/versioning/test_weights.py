"""The weights vault of a project: filled, versioned, repaired, brought into workspaces, trained from."""

import json
import shutil
import subprocess

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save

from openmed.errors import BadInput, IntegrityError, ResourceError
from openmed.files import sha256_bytes, sha256_file, write_json
from openmed.inference.checkpoint import load_model
from openmed.models.vault import read_vault
from pipeline.settings.params import load_params
from pipeline.stages.train import create_model
from pipeline.versioning import workspace as workspaces
from pipeline.versioning.weights import pull_champion, pull_imagenet
from tests.conftest import ROOT, run_stages, toy_params, write_params
from tests.hub import REVISION, UNREACHABLE, hub_client, serve
from tests.pipeline.conftest import crown

REMOTE = "[core]\n    remote = own\n['remote \"own\"']\n    url = ../../own\n"
RESNET, VIT = "test_resnet.r160_in1k", "test_vit.r160_in1k"

LICENCES = {RESNET: "apache-2.0", VIT: "cc-by-nc-4.0"}


def settings(**weights):
    """Two tiny networks, both started from ImageNet weights unless said otherwise."""
    params = toy_params() | {"architectures": ["resnet50", "vit"]}
    for name, network in (("resnet50", RESNET), ("vit", VIT)):
        params["train"][name] |= {"timm_name": network, "model_options": {}}
        params["train"][name]["weights"] = weights.get(name, "imagenet")
    return params


def git(folder, *arguments):
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def damage(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.fixture(scope="module")
def contents():
    torch.manual_seed(3)
    networks = {name: timm.create_model(name.split(".")[0], num_classes=1000) for name in (RESNET, VIT)}
    return {name: save(dict(network.state_dict())) for name, network in networks.items()}


@pytest.fixture
def hub(contents, tmp_path):
    """A hub that this process's client uses, with an empty cache."""
    with (
        serve(dict(contents), dict(LICENCES)) as server,
        hub_client(tmp_path / "cache") as use,
    ):
        use(server.address)
        server.use = use
        yield server


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A committed project without a vault, and with a remote."""
    from dvc.repo import Repo

    folder = tmp_path_factory.mktemp("template") / "project"
    folder.mkdir()
    for command in (
        ("init", "--quiet"),
        ("config", "user.name", "t"),
        ("config", "user.email", "t@localhost"),
    ):
        git(folder, *command)
    with Repo.init(str(folder)):
        (folder / ".dvc/config").write_text(
            "[core]\n    remote = own\n['remote \"own\"']\n    url = ../../own\n"
        )
    (folder / "data").mkdir()
    (folder / "data/film").write_text("film")
    shutil.copy(ROOT / "dvc.yaml", folder)
    write_params(folder, settings())
    with Repo(str(folder)) as repo:
        repo.add(str(folder / "data"))
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "First")
    return folder


@pytest.fixture
def project(template, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENMED_PROJECT", raising=False)
    monkeypatch.setenv("OPENMED_HOME", str(tmp_path / "home"))
    folder = tmp_path / "project"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def filled(template, contents, tmp_path_factory):
    """The project after `openmed weights pull`, with what that printed."""
    folder = tmp_path_factory.mktemp("filled") / "project"
    shutil.copytree(template, folder)
    said = []
    with (
        serve(dict(contents), LICENCES) as server,
        hub_client(folder.parent / "cache") as use,
    ):
        use(server.address)
        done = pull_imagenet(folder, folder / "params.yaml", said.append)
    return folder, done, said


@pytest.fixture
def pulled(filled, tmp_path, monkeypatch):
    """A copy of the filled project and of its remote, to change."""
    monkeypatch.delenv("OPENMED_PROJECT", raising=False)
    monkeypatch.setenv("OPENMED_HOME", str(tmp_path / "home"))
    folder = tmp_path / "project"
    shutil.copytree(filled[0], folder)
    shutil.copytree(filled[0].parent / "own", tmp_path / "own")
    monkeypatch.chdir(folder)
    return folder


def test_the_first_pull_keeps_everything_with_its_origin(filled, contents):
    folder, done, said = filled
    held = read_vault(folder / "weights")
    assert set(held) == {RESNET, VIT}
    entry = held[RESNET]
    assert (entry.source, entry.revision, entry.licence) == (f"timm/{RESNET}", REVISION, "apache-2.0")
    assert (entry.sha256, entry.bytes) == (sha256_bytes(contents[RESNET]), len(contents[RESNET]))
    assert held[VIT].licence == "cc-by-nc-4.0"
    assert (folder / "weights" / entry.file).read_bytes() == contents[RESNET]
    assert (done["fetched"], done["pinned"], done["pushed"]) == ([RESNET, VIT], ["resnet50", "vit"], True)
    assert f"{RESNET} is in the vault: timm/{RESNET} at {REVISION[:10]}, licence apache-2.0" in said


def test_the_first_pull_commits_the_pointer_and_the_hashes_alone(filled, contents):
    folder, done, _ = filled
    shown = git(folder, "show", "--name-only", "--format=%s", done["revision"]).split("\n")
    assert shown == ["Keep imagenet weights in the vault", "", ".gitignore", "params.yaml", "weights.dvc"]
    assert git(folder, "status", "--porcelain") == ""
    assert "/weights" in (folder / ".gitignore").read_text().splitlines()
    params = yaml.safe_load((folder / "params.yaml").read_text())
    for name, network in (("resnet50", RESNET), ("vit", VIT)):
        assert params["train"][name]["weights_sha256"] == sha256_bytes(contents[network])
    pointer = yaml.safe_load((folder / "weights.dvc").read_text())
    assert pointer["meta"]["weights"][VIT]["licence"] == "cc-by-nc-4.0"


def test_a_second_pull_does_nothing_and_needs_no_hub(pulled, hub, openmed):
    hub.use(UNREACHABLE)
    before = {path: path.stat().st_mtime_ns for path in (pulled / "weights").iterdir()}
    head = git(pulled, "rev-parse", "HEAD")
    code, out, err = openmed("weights", "pull", "--json")
    assert code == 0 and "Nothing is new" in err
    assert json.loads(out) == {"fetched": [], "pinned": [], "revision": None, "pushed": False}
    assert {path: path.stat().st_mtime_ns for path in (pulled / "weights").iterdir()} == before
    assert git(pulled, "rev-parse", "HEAD") == head


def test_the_list_shows_what_the_vault_holds(pulled, openmed, contents):
    code, out, _ = openmed("weights", "list")
    header, resnet, vit = out.splitlines()
    assert code == 0
    assert header.split() == ["kind", "network", "source", "revision", "licence", "bytes", "sha256", "state"]
    assert resnet.split()[1:5] == [RESNET, f"timm/{RESNET}", REVISION, "apache-2.0"]
    assert vit.split()[5:] == [str(len(contents[VIT])), sha256_bytes(contents[VIT]), "intact"]
    assert [entry["state"] for entry in json.loads(openmed("weights", "list", "--json")[1])] == ["intact"] * 2


def test_a_damaged_file_is_named_refused_and_fetched_again(pulled, hub, openmed, contents):
    hub.licences.clear()  # what was recorded stays recorded
    damage(pulled / "weights" / f"{VIT}.safetensors")
    code, out, err = openmed("weights", "list")
    assert code == 3 and out.splitlines()[2].split()[-1] == "damaged"
    assert err.startswith(f"openmed: {VIT}.safetensors is damaged: get it back with `dvc checkout --force")
    with pytest.raises(IntegrityError, match=r"test_vit\.r160_in1k\.safetensors is damaged"):
        create_model(load_params(), "vit")
    head = git(pulled, "rev-parse", "HEAD")
    code, out, _ = openmed("weights", "pull")
    assert code == 0 and f"weights/{VIT}.safetensors is damaged: it is fetched again" in out
    assert (pulled / "weights" / f"{VIT}.safetensors").read_bytes() == contents[VIT]
    assert read_vault(pulled / "weights")[VIT].licence == "cc-by-nc-4.0"
    assert {path.split("/")[4] for _, path in hub.requests} == {REVISION}  # the commit that was recorded
    assert "Nothing is new" in out and git(pulled, "rev-parse", "HEAD") == head


def test_an_unreachable_hub_is_one_sentence_with_the_alternatives(project, hub, openmed):
    hub.use(UNREACHABLE)
    code, out, err = openmed("weights", "pull")
    assert (code, out, err.count("\n")) == (4, "", 1)
    assert f"the ImageNet weights timm/{RESNET} cannot be fetched" in err
    assert "connect this machine, bring a weights vault that was filled elsewhere, set `weights` to" in err
    assert not (project / "weights").exists()


@pytest.fixture(scope="module")
def resumed(template, contents, tmp_path_factory):
    """A project without a remote whose first pull ended at its second network, and what the next one did.

    The settings are edited and not committed, and the hub states no licence.
    """
    folder = tmp_path_factory.mktemp("resumed") / "project"
    shutil.copytree(template, folder)
    (folder / ".dvc/config").write_text("")
    params, said = folder / "params.production.yaml", []
    params.write_text("# mine\n" + yaml.safe_dump(settings(vit="none"), sort_keys=False))
    with serve({RESNET: contents[RESNET]}) as server, hub_client(folder.parent / "cache") as use:
        use(server.address)
        with pytest.raises(ResourceError, match=VIT):
            pull_imagenet(folder, params, said.append)
        assert set(read_vault(folder / "weights")) == {RESNET}
        assert not (folder / "weights.dvc").exists()
        server.contents[VIT] = contents[VIT]
        server.requests.clear()
        done = pull_imagenet(folder, params, said.append)
        return folder, done, said, [path for _, path in server.requests]


def test_a_pull_that_was_cut_short_goes_on(resumed):
    folder, done, _, requested = resumed
    assert done["fetched"] == [VIT]
    assert requested and not [path for path in requested if RESNET in path]
    assert set(yaml.safe_load((folder / "weights.dvc").read_text())["meta"]["weights"]) == {RESNET, VIT}


def test_an_unknown_licence_is_recorded_as_such_and_said_loudly(resumed):
    folder, _, said, _ = resumed
    assert f"ATTENTION: timm/{VIT} states no licence; find out whether you may use it" in said
    assert {entry.licence for entry in read_vault(folder / "weights").values()} == {"unknown"}


def test_edited_settings_are_pinned_and_their_commit_is_left_to_the_editor(resumed):
    folder, done, said, _ = resumed
    assert "Commit params.production.yaml: it has changes of yours, so that it is left to you" in said
    assert git(folder, "show", "--name-only", "--format=").split("\n") == [".gitignore", "weights.dvc"]
    text = (folder / "params.production.yaml").read_text()
    train = yaml.safe_load(text)["train"]
    assert text.startswith("# mine\n") and done["pinned"] == ["resnet50"]
    assert train["resnet50"]["weights_sha256"] == read_vault(folder / "weights")[RESNET].sha256
    assert train["vit"]["weights_sha256"] is None


def test_without_a_remote_the_weights_stay_here_and_it_is_said(resumed):
    _, done, said, _ = resumed
    assert not done["pushed"]
    assert any(line.startswith("No DVC remote is set: the weights stay on this machine") for line in said)


def test_a_file_that_is_not_what_the_hub_announced_never_enters_the_vault(project, hub, openmed):
    hub.announced = "f" * 64
    code, _, err = openmed("weights", "pull")
    assert code == 3 and "damaged: delete" in err
    assert read_vault(project / "weights") == {}


def test_a_hub_that_announces_no_hash_needs_one_in_the_settings(project, hub, openmed, contents):
    hub.announced = "no-hash"
    code, _, err = openmed("weights", "pull")
    assert code == 3 and f"the hub announces no sha256 for timm/{RESNET}: set `weights_sha256`" in err
    params = settings(vit="none")
    params["train"]["resnet50"]["weights_sha256"] = sha256_bytes(contents[RESNET])
    write_params(project, params)
    code, _, err = openmed("weights", "pull")
    assert code == 3 and f"timm/{VIT}" in err  # nothing says what this one should be
    assert set(read_vault(project / "weights")) == {RESNET}


@pytest.mark.parametrize("there", [False, True])
def test_another_hash_than_the_settings_ask_for_is_refused(request, hub, there):
    folder = request.getfixturevalue("pulled" if there else "project")
    params = settings()
    params["train"]["vit"]["weights_sha256"] = "0" * 64
    write_params(folder, params)
    with pytest.raises(IntegrityError, match=f"weights of {VIT} have sha256 .*, but {'0' * 64} is asked for"):
        pull_imagenet(folder, folder / "params.yaml", print)


def test_a_network_without_published_weights_is_passed_over_unless_it_starts_from_them(project, hub, openmed):
    params = settings(vit="none")
    params["train"]["vit"]["timm_name"] = "vit_giant_patch14_224"
    params["architectures"] = ["vit"]
    write_params(project, params)
    code, out, err = openmed("weights", "pull")
    assert code == 2 and "vit_giant_patch14_224 is passed over" in out and "there is nothing to keep" in err
    params["train"]["vit"]["weights"] = "imagenet"
    write_params(project, params)
    code, _, err = openmed("weights", "pull")
    assert code == 2 and "timm has no ImageNet weights for 'vit_giant_patch14_224'" in err


def test_a_folder_that_is_no_project_of_dvc_is_refused_before_anything_is_fetched(tmp_path, hub):
    write_params(tmp_path, settings())
    with pytest.raises(BadInput, match="is no DVC project"):
        pull_imagenet(tmp_path, tmp_path / "params.yaml", print)
    assert not hub.requests


def test_a_list_without_a_vault_names_the_remedy(project, openmed):
    code, _, err = openmed("weights", "list")
    assert code == 2 and "has no weights vault: fill one with `openmed weights pull`" in err


def test_a_scheduled_run_finds_the_vault_of_its_revision_and_needs_no_hub(pulled, hub, tmp_path, monkeypatch):
    expected = create_model(load_params(), "resnet50").spec.weights
    path = workspaces.create(pulled, "HEAD", "run", tmp_path / "home")
    monkeypatch.chdir(path)
    hub.use(UNREACHABLE, cache=tmp_path / "fresh")
    model = create_model(load_params(), "resnet50")
    assert model.spec.weights == expected
    assert expected["kind"] == "imagenet" and expected["revision"] == REVISION


def test_a_clone_gets_the_vault_from_its_own_remote_before_it_adds_to_it(
    pulled, hub, tmp_path, openmed, monkeypatch
):
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(pulled), str(clone))
    monkeypatch.chdir(clone)
    hub.use(UNREACHABLE)
    code, _, err = openmed("weights", "list")
    assert code == 2 and "get it with `dvc pull weights.dvc`" in err
    code, out, _ = openmed("weights", "pull")
    assert code == 0 and "Getting what weights.dvc points to" in out and "Nothing is new" in out
    assert set(read_vault(clone / "weights")) == {RESNET, VIT}


def test_a_training_from_the_vault_runs_offline(workspace, filled, hub, tmp_path):
    hub.use(UNREACHABLE, cache=tmp_path / "fresh")
    shutil.copytree(filled[0] / "weights", workspace / "weights")
    shutil.copy(filled[0] / "params.yaml", workspace)
    run_stages(workspace, ["train@resnet50"])
    weights = load_model(workspace / "artifacts/train/resnet50/model").spec.weights
    assert weights["sha256"] == read_vault(workspace / "weights")[RESNET].sha256
    assert (weights["kind"], weights["source"]) == ("imagenet", f"timm/{RESNET}")


@pytest.fixture
def with_champion(project, shared, monkeypatch):
    """The project without a remote but with a champion, a resnet50, and that model's folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = project.parent / "home"
    shutil.copytree(shared[0], home)
    crown("1")
    (project / ".dvc/config").write_text("")
    return project, shared[1] / "artifacts/evaluate/resnet50/model"


def test_a_training_goes_on_from_the_champion_that_was_pulled(with_champion, openmed):
    folder, champion = with_champion
    params = settings(resnet50="champion", vit="none")
    params["preprocess"]["image_size_px"]["resnet50"] = 32
    write_params(folder, params)
    git(folder, "commit", "--quiet", "--message", "From the champion", "--", "params.yaml")
    with pytest.raises(BadInput, match="put it there with `openmed weights pull --champion`"):
        create_model(load_params(), "resnet50")
    code, out, _ = openmed("weights", "pull", "--champion", "--json")
    done = json.loads(out)
    assert code == 0 and (done["fetched"], done["pinned"]) == (["test_resnet"], ["resnet50"])
    source = champion / "weights.safetensors"
    model, held = create_model(load_params(), "resnet50"), load_file(source)
    assert all(torch.equal(model.network.state_dict()[name], held[name]) for name in held)
    assert model.spec.weights == {
        "kind": "champion",
        "source": "openmed-cxr version 1",
        "revision": None,
        "sha256": sha256_file(source),
    }
    entry = read_vault(folder / "weights")["champion"]
    assert (entry.file, entry.licence) == ("champion-1.safetensors", "own")
    again = json.loads(openmed("weights", "pull", "--champion", "--json")[1])
    assert again == {"fetched": [], "pinned": [], "revision": None, "pushed": False}, git(folder, "show")


def test_the_champion_of_another_architecture_is_refused_for_the_others(with_champion):
    folder, _ = with_champion
    write_params(folder, settings(resnet50="champion", vit="champion"))
    with pytest.raises(BadInput, match="openmed-cxr version 1, is a resnet50: vit cannot start from it"):
        pull_champion(folder, folder / "params.yaml", print)
    assert read_vault(folder / "weights") == {}


def test_without_a_champion_there_is_nothing_to_pull(project, store, openmed):
    code, _, err = openmed("weights", "pull", "--champion")
    assert code == 2 and "openmed-cxr has no champion: register and promote a model first" in err


@pytest.mark.parametrize("name", ["params.yaml", "params.production.yaml"])
def test_pinning_changes_nothing_else_in_the_shipped_settings(tmp_path, name):
    path, digest = tmp_path / name, "12e4" * 16
    shutil.copy(ROOT / name, path)
    workspaces.set_values(path, {f"train.{key}.weights_sha256": digest for key in ("resnet50", "vit")})
    assert [load_params(path).train[key].weights_sha256 for key in ("resnet50", "vit")] == [digest] * 2
    expected = (ROOT / name).read_text().replace("weights_sha256: null", f'weights_sha256: "{digest}"', 2)
    assert path.read_text() == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", 5),
        ("timm_name", None),
        ("file", 7),
        ("file", ""),
        ("file", "a\x1b[2K"),
        ("bytes", "x"),
        ("spec", []),
    ],
)
def test_a_record_of_the_wrong_types_is_refused(tmp_path, field, value):
    entry = dict.fromkeys(("kind", "timm_name", "file", "source", "licence", "sha256", "added_at"), "x")
    entry |= {"revision": None, "bytes": 1, field: value}
    write_json(tmp_path / "vault.json", {"weights": [entry]})
    with pytest.raises(BadInput, match=r"vault.json is no record of a weights vault|names a file outside"):
        read_vault(tmp_path)
