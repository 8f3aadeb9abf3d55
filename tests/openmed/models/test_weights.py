import json
import os
import subprocess
import sys
import time
from hashlib import sha256

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from openmed.errors import BadInput, IntegrityError, ResourceError
from openmed.models.vault import VaultEntry, put_in_vault
from openmed.models.weights import find_weights
from tests.hub import REVISION, UNREACHABLE, hub_client, serve

NETWORK = "test_resnet.r160_in1k"
ADDRESS = f"/timm/{NETWORK}/resolve/main/model.safetensors"

# What a user's own process does: the hub's client reads its settings when it is imported.
CREATE = f"""
import json, sys, torch
from safetensors.torch import save_file
from openmed.models.factory import ModelFactory
torch.set_num_threads(1)
model = ModelFactory.create("resnet50", timm_name="{NETWORK}", image_size_px=32, weights="imagenet")
save_file({{k: v.contiguous() for k, v in model.network.state_dict().items()}}, sys.argv[1])
print(json.dumps(model.spec.weights))
"""


def write_weights(path, network):
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)


@pytest.fixture
def made_up(tmp_path):
    """Weights of the right names and shapes, with the 1,000 classes of ImageNet."""
    torch.manual_seed(11)
    network = timm.create_model("test_resnet", num_classes=1000)
    path = tmp_path / "made_up.safetensors"
    write_weights(path, network)
    return path


@pytest.fixture
def hub(made_up):
    content = made_up.read_bytes()
    with serve({NETWORK: content}) as server:
        server.content = content
        yield server


def create_elsewhere(tmp_path, endpoint):
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    command = [sys.executable, "-c", CREATE, str(tmp_path / "created.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def use_hub(tmp_path):
    """Points the hub's client of this process at an address and an empty cache."""
    with hub_client(tmp_path / "cache") as use:
        yield use


def test_imagenet_weights_are_fetched_once_and_their_origin_is_recorded(hub, made_up, tmp_path):
    origin = create_elsewhere(tmp_path, hub.address)
    assert origin == {
        "kind": "imagenet",
        "source": f"timm/{NETWORK}",
        "revision": REVISION,
        "sha256": sha256(hub.content).hexdigest(),
    }
    served, created = load_file(made_up), load_file(tmp_path / "created.safetensors")
    backbone = [name for name in served if not name.startswith("fc.")]
    assert len(backbone) == len(served) - 2
    assert all(torch.equal(created[name], served[name]) for name in backbone)
    assert created["fc.weight"].shape == (2, 96)
    assert not torch.equal(created["fc.weight"], served["fc.weight"][:2])

    # Later runs need no hub, and a new version there does not change where they start.
    assert create_elsewhere(tmp_path, UNREACHABLE) == origin
    assert hub.requests.count(("GET", ADDRESS)) == 1


def test_imagenet_weights_with_another_hash_than_asked_for_are_refused(hub, use_hub):
    use_hub(hub.address)
    assert find_weights("imagenet", NETWORK, sha256(hub.content).hexdigest()).revision == REVISION
    with pytest.raises(IntegrityError, match="0" * 64):
        find_weights("imagenet", NETWORK, "0" * 64)


def test_imagenet_weights_that_are_not_what_the_hub_announced_are_refused(hub, use_hub):
    hub.announced = "f" * 64
    use_hub(hub.address)
    with pytest.raises(IntegrityError, match="damaged: delete"):
        find_weights("imagenet", NETWORK)


def test_imagenet_weights_that_changed_on_this_machine_are_refused(hub, use_hub):
    use_hub(hub.address)
    blob = find_weights("imagenet", NETWORK).path.resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(IntegrityError, match="damaged: delete"):
        find_weights("imagenet", NETWORK)


@pytest.mark.parametrize("offline", [False, True])
def test_an_unreachable_hub_is_reported_at_once_with_both_alternatives(use_hub, offline):
    use_hub(UNREACHABLE, offline)
    started = time.monotonic()
    with pytest.raises(ResourceError, match=r"path of a local safetensors file, or to `none`"):
        find_weights("imagenet", NETWORK)
    assert time.monotonic() - started < 10


def test_a_broken_proxy_is_reported(use_hub, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("HTTP_PROXY", UNREACHABLE)
    monkeypatch.setenv("http_proxy", UNREACHABLE)
    use_hub("http://hub.invalid")
    with pytest.raises(ResourceError, match="cannot be fetched"):
        find_weights("imagenet", NETWORK)


def test_a_hub_without_the_file_is_reported(hub, use_hub):
    use_hub(hub.address + "/elsewhere")
    with pytest.raises(ResourceError, match=NETWORK):
        find_weights("imagenet", NETWORK)


def test_no_weights_need_no_file(make):
    assert make("resnet50").spec.weights == {"kind": "none", "source": None, "revision": None, "sha256": None}


def test_a_local_file_gives_the_backbone_and_a_fresh_head(make, made_up):
    digest = sha256(made_up.read_bytes()).hexdigest()
    model = make("resnet50", weights=str(made_up), weights_sha256=digest)
    # The folder means nothing on another machine and may tell something about this one.
    expected = {"kind": "file", "source": "made_up.safetensors", "revision": None, "sha256": digest}
    assert model.spec.weights == expected
    served, created = load_file(made_up), model.network.state_dict()
    assert all(torch.equal(created[name], served[name]) for name in served if not name.startswith("fc."))
    assert created["fc.weight"].shape == (2, 96)


def test_a_local_file_of_a_vit_is_fitted_to_another_input_size(make, tmp_path):
    path = tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit", num_classes=1000).state_dict(), path)
    model = make("vit", weights=str(path), image_size_px=64)
    assert model.network.pos_embed.shape[1] == 1 + 16


def test_a_model_of_our_own_is_a_start_for_another_number_of_classes(make, tmp_path):
    path = tmp_path / "own.safetensors"
    write_weights(path, make("resnet50", seed=4).network)
    model = make("resnet50", weights=str(path), class_names=("A", "B", "C"), positive="C")
    assert torch.equal(model.network.conv1[0].weight, load_file(path)["conv1.0.weight"])


def test_a_local_file_with_another_hash_is_refused(make, made_up):
    with pytest.raises(IntegrityError, match=r"made_up\.safetensors has sha256"):
        make("resnet50", weights=str(made_up), weights_sha256="0" * 64)


@pytest.mark.parametrize(
    "lacking", ["layer2.0.conv1.weight", "layer3.0.bn1.bias", "layer1.0.bn1.running_var"]
)
def test_a_local_file_that_lacks_a_tensor_is_refused(make, made_up, lacking):
    tensors = load_file(made_up)
    del tensors[lacking]
    save_file(tensors, made_up)
    with pytest.raises(BadInput, match=f"1 tensors are missing, the first is {lacking}"):
        make("resnet50", weights=str(made_up))


def test_a_local_file_of_another_network_is_refused(make, tmp_path):
    save_file(timm.create_model("test_vit", num_classes=1000).state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(BadInput):
        make("resnet50", weights=str(tmp_path / "vit.safetensors"))


def test_a_local_file_of_other_shapes_is_refused(make, made_up):
    tensors = load_file(made_up)
    tensors["layer2.0.conv1.weight"] = torch.zeros(3, 3)
    save_file(tensors, made_up)
    with pytest.raises(BadInput, match=r"layer2\.0\.conv1\.weight"):
        make("resnet50", weights=str(made_up))


def test_the_step_counters_of_batch_norm_may_be_missing(make, made_up):
    tensors = {name: t for name, t in load_file(made_up).items() if not name.endswith("num_batches_tracked")}
    save_file(tensors, made_up)
    make("resnet50", weights=str(made_up))


@pytest.mark.parametrize("name", ["weights.pth", "weights.bin", "weights"])
def test_a_file_of_another_kind_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(BadInput, match="`none` to train from scratch"):
        find_weights(str(tmp_path / name), NETWORK)


@pytest.mark.parametrize("name", ["absent.safetensors", "Imagenet", ""])
def test_a_missing_file_is_refused_with_the_alternatives(tmp_path, name):
    with pytest.raises(BadInput, match="local safetensors file"):
        find_weights(str(tmp_path / name), NETWORK)


@pytest.mark.parametrize("content", [b"", b"short", b"\x80\x04" + b"x" * 100])
def test_a_file_that_only_has_the_name_is_refused(tmp_path, content):
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(BadInput, match="not a readable safetensors file"):
        find_weights(str(tmp_path / "weights.safetensors"), NETWORK)


def test_a_network_without_published_weights_is_refused():
    with pytest.raises(BadInput, match="timm has no ImageNet weights for 'vit_giant_patch14_224'"):
        find_weights("imagenet", "vit_giant_patch14_224")


def keep(vault, source, /, **about):
    """Puts a file into a vault as ImageNet weights of NETWORK, and returns its hash."""
    digest = sha256(source.read_bytes()).hexdigest()
    entry = {
        "kind": "imagenet",
        "timm_name": NETWORK,
        "file": f"{NETWORK}.safetensors",
        "source": f"timm/{NETWORK}",
        "revision": REVISION,
        "licence": "apache-2.0",
        "sha256": digest,
        "bytes": source.stat().st_size,
        "added_at": "2026-01-01T00:00:00+00:00",
    }
    put_in_vault(vault, source, VaultEntry(**entry | about))
    return digest


def keep_champion(vault, model, path, version="7"):
    write_weights(path, model.network)
    about = {"file": f"champion-{version}.safetensors", "source": f"openmed-cxr version {version}"}
    spec = json.loads(json.dumps(model.spec.with_threshold(0.4).to_json()))
    return keep(vault, path, kind="champion", revision=None, spec=spec, **about)


def test_the_vault_comes_before_the_hub_and_the_record_is_the_same(hub, use_hub, made_up, tmp_path):
    digest = keep(tmp_path / "vault", made_up)
    use_hub(UNREACHABLE, cache=tmp_path / "empty")
    kept = find_weights("imagenet", NETWORK, digest, vault=tmp_path / "vault")
    use_hub(hub.address)
    fetched = find_weights("imagenet", NETWORK, digest, vault=tmp_path / "absent")
    cached = find_weights("imagenet", NETWORK, digest)
    assert kept.to_json() == fetched.to_json() == cached.to_json()
    assert kept.path == tmp_path / "vault" / f"{NETWORK}.safetensors"
    assert cached.path.is_relative_to(tmp_path / "cache")


def test_what_the_vault_lacks_comes_from_the_hub(hub, use_hub, made_up, tmp_path):
    keep(tmp_path / "vault", made_up, timm_name="another", file="another.safetensors")
    use_hub(hub.address)
    assert find_weights("imagenet", NETWORK, vault=tmp_path / "vault").revision == REVISION


def test_weights_from_the_vault_must_be_named_by_their_hash(make, made_up, tmp_path):
    digest = keep(tmp_path, made_up)
    with pytest.raises(BadInput, match=f"set it to {digest}, or let `openmed weights pull` do so"):
        find_weights("imagenet", NETWORK, vault=tmp_path)
    with pytest.raises(IntegrityError, match=f"with sha256 {digest}, but the settings ask for {'0' * 64}"):
        find_weights("imagenet", NETWORK, "0" * 64, vault=tmp_path)
    digest = keep_champion(tmp_path, make("resnet50"), tmp_path / "own.safetensors")
    with pytest.raises(BadInput, match=f"set it to {digest}, or let `openmed weights pull --champion`"):
        find_weights("champion", NETWORK, vault=tmp_path)


def test_a_damaged_file_of_the_vault_is_named_and_never_replaced_by_the_hub(hub, use_hub, made_up, tmp_path):
    digest = keep(tmp_path / "vault", made_up)
    use_hub(hub.address)
    file = tmp_path / "vault" / f"{NETWORK}.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"r160_in1k\.safetensors is damaged: get it back"):
        find_weights("imagenet", NETWORK, digest, vault=tmp_path / "vault")
    file.unlink()
    with pytest.raises(IntegrityError, match=r"r160_in1k\.safetensors is missing: get it back"):
        find_weights("imagenet", NETWORK, digest, vault=tmp_path / "vault")
    assert not hub.requests


def test_a_training_goes_on_from_the_champion_with_its_head(make, tmp_path):
    champion = make("resnet50", seed=4)
    digest = keep_champion(tmp_path / "vault", champion, tmp_path / "own.safetensors")
    asked = {"weights": "champion", "weights_sha256": digest, "vault": tmp_path / "vault"}
    model = make("resnet50", seed=5, **asked)
    state = model.network.state_dict()
    assert all(torch.equal(state[name], held) for name, held in champion.network.state_dict().items())
    expected = {"kind": "champion", "source": "openmed-cxr version 7", "revision": None, "sha256": digest}
    assert model.spec.weights == expected
    assert model.spec.threshold is None


@pytest.mark.parametrize("names", [("PNEUMONIA", "NORMAL"), ("PNEUMONIA", "A", "B")])
def test_a_champion_of_other_classes_gives_its_backbone_alone(make, tmp_path, names):
    champion = make("vit", seed=4)
    digest = keep_champion(tmp_path / "vault", champion, tmp_path / "own.safetensors")
    asked = {"weights": "champion", "weights_sha256": digest, "vault": tmp_path / "vault"}
    state = make("vit", seed=5, class_names=names, **asked).network.state_dict()
    fresh = make("vit", seed=5, class_names=names).network.state_dict()
    for name, held in champion.network.state_dict().items():
        assert torch.equal(state[name], (fresh if name.startswith("head.") else {name: held})[name]), name


def test_a_champion_of_another_architecture_or_network_is_refused(make, tmp_path):
    digest = keep_champion(tmp_path / "vault", make("vit"), tmp_path / "own.safetensors")
    asked = {"weights": "champion", "weights_sha256": digest, "vault": tmp_path / "vault"}
    with pytest.raises(BadInput, match="openmed-cxr version 7 is a vit: resnet50 cannot start from it"):
        make("resnet50", **asked)
    with pytest.raises(BadInput, match=r"does not fit the network .* test_vit at 32 px with no options"):
        make("vit", model_options={"depth": 3}, **asked)


@pytest.mark.parametrize("folder", [None, "absent", "vault"])
def test_a_champion_that_is_not_in_the_vault_is_refused(make, made_up, tmp_path, folder):
    keep(tmp_path / "vault", made_up)
    vault = tmp_path / folder if folder else None
    with pytest.raises(BadInput, match="holds no champion: put it there with `openmed weights pull --champ"):
        make("resnet50", weights="champion", weights_sha256="0" * 64, vault=vault)
