"""The comparison with the champion's films: what it needs, what it writes, when it stops a run."""

import json
import re
import shutil
import sys

import numpy as np
import pandas as pd
import pytest

from openmed.errors import BadInput, IntegrityError, ResourceError
from openmed.files import sha256_file
from pipeline import registry
from pipeline.commands import app as cli
from pipeline.monitoring.drift import check_drift, restore_drift
from pipeline.registry.profiles import PROFILE_FILE
from tests.conftest import ROOT
from tests.pipeline.conftest import SPLITS, crown, make_workspace, register

MANIFEST = "artifacts/validate/manifest.parquet"


def measured(films, seed=0):
    """Adds measurements to a manifest, as films of one hospital have them."""
    rng, count = np.random.default_rng(seed), len(films)
    return films.assign(
        mean=rng.normal(120, 18, count),
        std=rng.normal(56, 9, count),
        width=rng.integers(1000, 1400, count),
        height=rng.integers(900, 1300, count),
        bits=8,
        embedding=list(rng.normal(size=(count, 6)).astype(np.float32)),
        manufacturer=rng.choice(["Siemens", "Philips"], count),
    )


def added(count, seed=7, **edits):
    """Films that are in no version yet."""
    films = pd.DataFrame(
        {
            "id": [f"new{number}" for number in range(count)],
            "path": [f"films/ROE^RICHARD-{number}.png" for number in range(count)],
            "sha256": [f"{number:064x}" for number in range(count)],
            "label": np.arange(count) // 2 % 2,
            "patient": [f"ROE^RICHARD-{number // 2:03d}" for number in range(count)],
            "status": "accepted",
        }
    )
    return measured(films, seed).assign(**edits)


@pytest.fixture(scope="module")
def live(tmp_path_factory, migrated):
    """A state folder with a champion, and the manifest of its films."""
    home, workspace = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("champion")
    shutil.copy(migrated, home / "mlflow.db")
    make_workspace(workspace, splits=SPLITS * 3)
    manifest = measured(pd.read_parquet(workspace / MANIFEST))
    manifest.to_parquet(workspace / MANIFEST)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENMED_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        crown(register(workspace).version)
    return home, manifest


@pytest.fixture
def champion(live, monkeypatch):
    monkeypatch.setenv("OPENMED_HOME", str(live[0]))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return live[1]


@pytest.fixture
def validated(tmp_path, monkeypatch):
    """Makes a workspace in which `validate` has just written a manifest."""

    def make(manifest):
        folder = tmp_path / "project"
        (folder / "artifacts/validate").mkdir(parents=True, exist_ok=True)
        params = (ROOT / "params.yaml").read_text()
        (folder / "params.yaml").write_text(params.replace("replicates: 1000", "replicates: 200"))
        shutil.copy(ROOT / "dvc.yaml", folder)
        manifest.reset_index(drop=True).to_parquet(folder / MANIFEST)
        monkeypatch.setenv("OPENMED_PROJECT", str(folder))
        return folder

    return make


def read(folder):
    return json.loads((folder / "artifacts/drift/drift.json").read_text())


def page(folder):
    return (folder / "artifacts/drift/drift.html").read_text()


def test_without_a_champion_it_says_so_and_the_run_goes_on(store, validated, monkeypatch, capsys):
    folder = validated(added(30))
    found = check_drift(folder).to_json()
    assert found["verdict"] == "not compared" and found["champion"] is None
    assert found["sentence"] == (
        "There is nothing to compare these 30 films with yet: there is no champion yet."
    )
    assert read(folder) == found and found["sentence"] in page(folder)
    monkeypatch.setattr(sys, "argv", ["openmed", "data", "drift"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"{found['sentence']}\nThe page: {folder}")


def test_a_champion_of_before_has_no_films_to_compare_with(store, validated, tmp_path):
    from mlflow import MlflowClient

    result = register(make_workspace(tmp_path / "old"))
    crown(result.version)
    address = f"sqlite:///{store / 'mlflow.db'}"
    MlflowClient(address, address).delete_tag(result.run_id, "data_profile_sha256")
    found = check_drift(validated(added(30))).to_json()
    assert found["verdict"] == "not compared" and "was registered without its films" in found["sentence"]


def test_the_same_films_do_not_differ(champion, validated):
    found = check_drift(validated(champion)).to_json()
    assert (found["verdict"], found["judged"]) == ("none", "whole")
    assert found["sentence"] == "The 120 films look like those of champion 1."
    assert set(found["comparisons"]) == {"whole"}


def test_enough_added_films_are_judged_alone_and_the_whole_is_shown_too(champion, validated):
    folder = validated(pd.concat([champion, added(60)]))
    found = check_drift(folder).to_json()
    assert (found["verdict"], found["judged"]) == ("none", "added")
    assert found["sentence"] == "The 60 added films look like those of champion 1."
    assert [found["comparisons"][name]["films"] for name in ("added", "whole")] == [60, 180]
    assert found["comparisons"]["whole"]["patients"] == 90
    assert found["manifest_sha256"] == sha256_file(folder / MANIFEST)
    assert check_drift(folder).to_json() == found


@pytest.mark.parametrize(
    ("aspect", "edit"),
    [
        ("brightness", lambda films: films.assign(mean=films["mean"] + 40)),
        ("manufacturer", lambda films: films.assign(manufacturer="Agfa")),
    ],
)
def test_a_large_shift_of_added_films_stops_the_run_unless_it_is_accepted(champion, validated, aspect, edit):
    folder = validated(pd.concat([champion, edit(added(60))]))
    with pytest.raises(BadInput) as refused:
        check_drift(folder)
    said = str(refused.value)
    assert f"The 60 added films differ too much from those of champion 1: {aspect} " in said
    assert "accept_drift" in said and "drift.html" in said and "\n" not in said
    assert read(folder)["verdict"] == "large" and "The run stops here" in page(folder)
    accepted = check_drift(folder, accept=True).to_json()
    assert accepted["verdict"] == "large" and accepted["accepted"] is True
    assert "The shift was accepted" in page(folder)


def test_few_odd_films_do_not_stop_a_run(champion, validated):
    odd = added(20)
    found = check_drift(validated(pd.concat([champion, odd.assign(mean=odd["mean"] + 60)]))).to_json()
    assert found["judged"] == "whole" and found["verdict"] != "large"


def test_many_films_of_few_patients_are_not_judged_alone(champion, validated):
    odd = added(60)
    films = odd.assign(patient=[f"ROE^{number % 5}" for number in range(60)], mean=odd["mean"] + 5)
    assert check_drift(validated(pd.concat([champion, films]))).judged == "whole"


def test_quarantined_films_are_not_compared(champion, validated):
    broken = added(60, status="quarantined", mean=np.nan)
    assert set(check_drift(validated(pd.concat([champion, broken]))).comparisons) == {"whole"}


def test_the_page_stands_alone_and_names_nobody(champion, validated):
    folder = validated(pd.concat([champion, added(60)]))
    check_drift(folder)
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page(folder))
    for text in (page(folder), json.dumps(read(folder))):
        assert not re.search(r"DOE|ROE|films/|new\d", re.sub(r"base64,[\w+/=]+", "", text))


def test_what_is_stored_names_nobody_and_tells_patients_apart(champion):
    version, films = registry.champion_profile()
    assert version == "1" and len(films) == len(champion)
    assert not {"path", "id", "reason"} & set(films.columns)
    assert films["patient"].str.fullmatch(r"p\d{6}").all()
    pairs = pd.DataFrame({"code": films["patient"], "name": champion["patient"]}).drop_duplicates()
    assert len(pairs) == champion["patient"].nunique() == films["patient"].nunique()
    assert set(films["label"]) == {"NORMAL", "PNEUMONIA"}
    np.testing.assert_array_equal(np.stack(films["embedding"]), np.stack(champion["embedding"]))


def test_a_text_that_names_a_patient_keeps_the_profile_out_of_the_store(store, tmp_path):
    from mlflow import MlflowClient

    workspace = make_workspace(tmp_path / "ws")
    manifest = pd.read_parquet(workspace / MANIFEST)
    manifest.assign(manufacturer="Room of DOE^JANE-0003").to_parquet(workspace / MANIFEST)
    result = register(workspace)
    address = f"sqlite:///{store / 'mlflow.db'}"
    tags = MlflowClient(address, address).get_run(result.run_id).data.tags
    assert tags["withheld"] == PROFILE_FILE and "data_profile_sha256" not in tags
    assert not list(store.rglob(PROFILE_FILE))


def test_patients_in_no_split_are_numbered_too(store, tmp_path):
    workspace = make_workspace(tmp_path / "ws")
    manifest = pd.concat([pd.read_parquet(workspace / MANIFEST), added(4)], ignore_index=True)
    manifest.to_parquet(workspace / MANIFEST)
    crown(register(workspace).version)
    films = registry.champion_profile()[1]
    assert list(films["patient"].tail(4)) == ["x000001", "x000001", "x000002", "x000002"]


def test_the_page_goes_to_the_registry_if_it_is_about_the_same_films(store, tmp_path):
    from mlflow import MlflowClient

    address = f"sqlite:///{store / 'mlflow.db'}"
    for name, digest, kept in (("same", None, True), ("stale", "0" * 64, False)):
        workspace = make_workspace(tmp_path / name)
        drift = workspace / "artifacts/drift"
        drift.mkdir()
        digest = digest or sha256_file(workspace / MANIFEST)
        (drift / "drift.json").write_text(json.dumps({"manifest_sha256": digest}))
        (drift / "drift.html").write_text("<p>No shift.</p>")
        run = register(workspace, run_key=name).run_id
        stored = {file.path for file in MlflowClient(address, address).list_artifacts(run)}
        assert ("drift" in stored) is kept and PROFILE_FILE in stored


def test_a_registry_that_is_down_is_no_silent_pass(champion, validated, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder = validated(champion)
    with pytest.raises(ResourceError, match="cannot be used"):
        check_drift(folder)
    assert not (folder / "artifacts/drift").exists()


def test_stored_films_that_cannot_be_read_now_may_be_tried_again(champion, validated, monkeypatch):
    from mlflow import MlflowClient

    def unreachable(*_):
        raise ConnectionError("no route")

    monkeypatch.setattr(MlflowClient, "download_artifacts", unreachable)
    with pytest.raises(ResourceError, match=r"cannot be fetched \(ConnectionError\)"):
        check_drift(validated(champion))


def test_stored_films_that_were_changed_or_lost_are_refused(live, champion, validated):
    folder = validated(champion)
    (path,) = live[0].rglob(PROFILE_FILE)
    before = path.read_bytes()
    try:
        path.write_bytes(before[:-9] + bytes([before[-9] ^ 1]) + before[-8:])
        with pytest.raises(IntegrityError, match=r"of version 1 was changed: restore it"):
            check_drift(folder)
        path.unlink()
        with pytest.raises(IntegrityError, match=r"of version 1 is lost: restore it"):
            check_drift(folder)
    finally:
        path.write_bytes(before)


def test_another_host_draws_the_same_page_from_the_numbers_alone(champion, validated, tmp_path, monkeypatch):
    folder = validated(pd.concat([champion, added(60)]))
    told = json.loads(json.dumps(check_drift(folder).to_json()))
    elsewhere = tmp_path / "elsewhere"
    for name in (MANIFEST, "params.yaml"):
        (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, elsewhere / name)
    restore_drift(elsewhere, told)
    for name in ("drift.json", "drift.html"):
        made = (folder / "artifacts/drift" / name).read_bytes()
        assert (elsewhere / "artifacts/drift" / name).read_bytes() == made
    # What is there stays, and the registry is not asked.
    monkeypatch.setattr(registry, "profile_of", None)
    restore_drift(elsewhere, told)


def test_before_validate_there_is_nothing_to_compare(champion, validated):
    folder = validated(champion)
    (folder / MANIFEST).unlink()
    with pytest.raises(BadInput, match="run the pipeline in this workspace first"):
        check_drift(folder)


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["--accept", "--json"], 0)])
def test_the_command_ends_with_2_on_a_large_shift(champion, validated, monkeypatch, capsys, arguments, code):
    odd = added(60)
    folder = validated(pd.concat([champion, odd.assign(mean=odd["mean"] + 40)]))
    monkeypatch.setattr(sys, "argv", ["openmed", "data", "drift", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    said = capsys.readouterr()
    if "--json" in arguments:
        assert json.loads(said.out) == read(folder)
    else:
        assert said.err.startswith("openmed: The 60 added films differ too much") and not said.out
