"""The triage stage and the way of a decision from the sheet into the next run."""

import json
import re

import cv2
import numpy as np
import pandas as pd
import pytest

from openmed.errors import IntegrityError
from openmed.files import sha256_file
from tests.conftest import forget_hashes, run_stages, write_params


def ranking(folder):
    return pd.read_csv(folder / "artifacts/triage/ranking.csv", keep_default_na=False, dtype={"id": str})


def manifest(folder):
    return pd.read_parquet(folder / "artifacts/validate/manifest.parquet")


def read(folder, path):
    return json.loads((folder / "artifacts" / path).read_text())


def test_every_accepted_film_is_ranked_once_the_most_suspicious_first(toy):
    table, accepted = ranking(toy), manifest(toy).query("status == 'accepted'")
    assert sorted(table["id"]) == sorted(accepted["id"])
    assert table["rank"].tolist() == list(range(1, len(table) + 1))
    assert table["score"].is_monotonic_decreasing
    scores = table.filter(like="score_").max(axis=1)
    assert np.allclose(table["score"], scores)


def test_the_ranking_names_no_path_and_no_patient(toy):
    text = (toy / "artifacts/triage/ranking.csv").read_text() + (
        toy / "artifacts/triage/sheet.html"
    ).read_text()
    films = manifest(toy)
    assert not [name for name in (*films["patient"], *films["path"]) if name in text]


def test_the_sheet_stands_alone_and_is_small(toy):
    page = (toy / "artifacts/triage/sheet.html").read_text()
    assert len(page.encode()) < 5_000_000
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "http" not in page
    assert page.count("data:image/jpeg;base64,") == 60
    assert page.count('value="exclude"') == 60


def test_the_sheet_shows_as_many_films_as_asked(workspace, params):
    params["triage"]["shown_films"] = 3
    write_params(workspace, params)
    run_stages(workspace, ["triage"])
    page = (workspace / "artifacts/triage/sheet.html").read_text()
    shown = re.findall(r'data-film="([0-9a-f]{64})"', page)
    assert shown == ranking(workspace)["sha256"].tolist()[:3]


def test_the_same_films_give_the_same_bytes_again(toy, workspace):
    run_stages(workspace, ["triage"])
    for name in ("ranking.csv", "sheet.html", "summary.json"):
        assert sha256_file(workspace / "artifacts/triage" / name) == sha256_file(
            toy / "artifacts/triage" / name
        )


def test_a_film_changed_since_its_validation_is_named_and_not_shown(workspace):
    first = manifest(workspace).set_index("id").loc[ranking(workspace)["id"][0], "path"]
    content = bytearray((workspace / "data" / first).read_bytes())
    content[-9] ^= 1
    (workspace / "data" / first).write_bytes(content)
    with pytest.raises(IntegrityError, match=re.escape(first)):
        run_stages(workspace, ["triage"])


def test_an_inverted_film_leads_the_sheet_until_a_reviewer_excludes_it(workspace):
    path = workspace / "data" / manifest(workspace)["path"][4]
    film = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    forget_hashes(workspace)
    path.write_bytes(cv2.imencode(".jpeg", 255 - film)[1].tobytes())
    run_stages(workspace, ["validate", "preprocess", "triage"])
    first = ranking(workspace).iloc[0]
    assert first["sha256"] == sha256_file(path)
    assert "inverted" in first["reasons"].split("; ")
    (workspace / "decisions.csv").write_text(
        f'film,decision,label,reason,by\n{first["sha256"]},exclude,,"looks </script> ""odd""",AB\n'
    )
    run_stages(workspace, ["validate", "split", "preprocess", "triage"])
    assert first["id"] not in set(ranking(workspace)["id"])
    assert first["id"] not in set(pd.read_parquet(workspace / "artifacts/split/split.parquet")["id"])
    assert read(workspace, "validate/summary.json")["decisions"]["excluded"] == 1
    page = (workspace / "artifacts/triage/sheet.html").read_text()
    kept = json.loads(re.search(r'id="existing">(.*?)</script>', page, re.S)[1])
    assert kept["rows"] == [[first["sha256"], "exclude", "", 'looks </script> "odd"', "AB"]]


def test_kept_and_relabelled_films_leave_the_sheet_and_are_counted(workspace):
    films = manifest(workspace).drop_duplicates("sha256", keep=False)
    kept, wrong = films[films["label"] == 1].iloc[0], films[films["label"] == 0].iloc[0]
    (workspace / "decisions.csv").write_text(
        "film,decision,label,reason,by\n"
        f"{kept['id']},keep,,,\n{wrong['id']},relabel,PNEUMONIA,,\n{'0' * 64},exclude,,,\n"
    )
    run_stages(workspace, ["validate", "triage"])
    counts = {"excluded": 0, "relabelled": 1, "kept": 1, "unknown": 1}
    assert read(workspace, "validate/summary.json")["decisions"] == counts
    assert manifest(workspace).set_index("id").loc[wrong["id"], "label"] == 1
    assert not {kept["id"], wrong["id"]} & set(ranking(workspace)["id"])
    assert read(workspace, "triage/summary.json")["decided"] == 2


def test_what_a_network_says_of_a_film_it_never_saw_counts(workspace, params):
    """Three classes, and a network that is sure of one film's other label."""
    films = pd.read_csv(workspace / "data/films.csv", dtype=str, keep_default_na=False)
    odd = films["patient"].str[-1].isin(list("13579"))
    films.loc[(films["label"] == "PNEUMONIA") & odd, "label"] = "COVID"
    films.to_csv(workspace / "data/films.csv", index=False)
    params["task"] = {"classes": ["NORMAL", "PNEUMONIA", "COVID"], "positive": "COVID"}
    params["architectures"] = ["vit"]
    write_params(workspace, params)
    accused = manifest(workspace)["id"][0]
    columns = {f"probability_{name}": [0.0] for name in params["task"]["classes"]}
    before = pd.DataFrame({"id": ["none"], **columns})
    stored = workspace / "artifacts/evaluate/vit/predictions.parquet"
    before.to_parquet(stored)
    run_stages(workspace, ["validate", "triage"])
    plain = ranking(workspace).set_index("id")["score_label"]
    label = manifest(workspace).set_index("id").loc[accused, "label"]
    other = params["task"]["classes"][(label + 1) % 3]
    before.assign(id=accused, **{f"probability_{other}": 1.0}).to_parquet(stored)
    run_stages(workspace, ["triage"])
    after = ranking(workspace).set_index("id")
    assert after.loc[accused, "score_label"] == pytest.approx((plain[accused] + 1) / 2, abs=2e-4)
    assert after.loc[accused, "suggested_label"] == other
    others = after.index != accused
    assert np.allclose(after["score_label"][others], plain[after.index[others]])


def test_a_class_of_few_patients_is_said_not_to_be_judged(workspace, params):
    films = pd.read_csv(workspace / "data/films.csv", dtype=str, keep_default_na=False)
    patients = films.loc[films["label"] == "NORMAL", "patient"].unique()[:3]
    films[films["patient"].isin(patients) | (films["label"] == "PNEUMONIA")].to_csv(
        workspace / "data/films.csv", index=False
    )
    run_stages(workspace, ["validate", "preprocess", "triage"])
    assert read(workspace, "triage/summary.json")["estimated_label_errors"] is None
    assert "Labels were not judged" in (workspace / "artifacts/triage/sheet.html").read_text()
    assert "score_label" not in ranking(workspace)


def test_the_data_card_tells_of_the_reviewers(toy):
    page = (toy / "artifacts/explain/vit/report.html").read_text()
    assert "Reviewers excluded 0, relabelled 0 and kept 0 films" in page
