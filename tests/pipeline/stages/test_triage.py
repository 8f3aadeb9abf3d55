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


def three_classes(workspace, params):
    """Calls half of the ill COVID, by the patient: two classes that nothing tells apart."""
    films = pd.read_csv(workspace / "data/films.csv", dtype=str, keep_default_na=False)
    odd = films["patient"].str[-1].isin(list("13579"))
    films.loc[(films["label"] == "PNEUMONIA") & odd, "label"] = "COVID"
    films.to_csv(workspace / "data/films.csv", index=False)
    params["task"] = {"classes": ["NORMAL", "PNEUMONIA", "COVID"], "positive": "COVID"}
    params["architectures"] = ["vit"]
    write_params(workspace, params)


def network_says(workspace, params, answers):
    """Stores that the network, which learned none of these films, gives each answer 0.9."""
    classes, film = params["task"]["classes"], pd.Series(answers, dtype=str)
    rest = 0.1 / (len(classes) - 1)
    columns = {f"probability_{name}": np.where(film == name, 0.9, rest) for name in classes}
    stored = workspace / "artifacts/evaluate/vit/predictions.parquet"
    pd.DataFrame({"id": film.index.astype(str), **columns}).to_parquet(stored)


def test_what_a_network_says_of_a_film_it_never_saw_counts(workspace, params):
    three_classes(workspace, params)
    run_stages(workspace, ["validate"])
    films, classes = manifest(workspace), params["task"]["classes"]
    right = {film: classes[label] for film, label in films[["id", "label"]].to_numpy()}
    film = next(name for name in right if right[name] == "NORMAL")
    scores = {}
    for answer in ("NORMAL", "PNEUMONIA"):
        network_says(workspace, params, right | {film: answer})
        run_stages(workspace, ["triage"])
        table = ranking(workspace).set_index("id")
        scores[answer] = table["score_label"].sort_index()
    assert scores["NORMAL"][film] < 0.1
    assert scores["PNEUMONIA"][film] > 0.5
    assert table.loc[film, "suggested_label"] == "PNEUMONIA"
    others = table.index.sort_values() != film
    assert np.abs(scores["PNEUMONIA"] - scores["NORMAL"])[others].max() < 0.1


def test_classes_that_nothing_tells_apart_accuse_few_labels(workspace, params):
    three_classes(workspace, params)
    network_says(workspace, params, {"no film": "NORMAL"})
    run_stages(workspace, ["validate", "triage"])
    assert (ranking(workspace)["score_label"] > 0.5).mean() <= 0.03


def test_score_reasons_suggestion_and_summary_say_the_same_of_a_label(workspace, params):
    params["architectures"] = ["vit"]
    write_params(workspace, params)
    other = {"NORMAL": "PNEUMONIA", "PNEUMONIA": "NORMAL"}
    classes = params["task"]["classes"]
    right = {film: classes[label] for film, label in manifest(workspace)[["id", "label"]].to_numpy()}
    network_says(workspace, params, right)
    films = pd.read_csv(workspace / "data/films.csv", dtype=str, keep_default_na=False)
    exchanged = films.drop_duplicates("patient").groupby("label").head(3).index
    films.loc[exchanged, "label"] = films.loc[exchanged, "label"].map(other)
    films.to_csv(workspace / "data/films.csv", index=False)
    run_stages(workspace, ["validate", "triage"])
    table, summary = ranking(workspace), read(workspace, "triage/summary.json")
    accused = table["score_label"] > 0.5
    named = manifest(workspace).set_index("id")["label"].map(dict(enumerate(classes)))
    wrong = named.index[named != pd.Series(right).reindex(named.index)]
    assert len(wrong) == 6
    assert set(wrong) <= set(table.loc[accused, "id"])
    assert accused.sum() <= 10
    assert (table["reasons"].str.split("; ").str[0] == "label").tolist() == accused.tolist()
    assert (table["suggested_label"] == table["label"].map(other).where(accused, "")).all()
    assert summary["reasons"]["label"] == accused.sum() == summary["estimated_label_errors"]
    assert summary["suspicious"] == (table["score"] > 0.5).sum()
    first = table.loc[accused, "id"].iloc[0]
    (workspace / "decisions.csv").write_text(f"film,decision,label,reason,by\n{first},keep,,,\n")
    run_stages(workspace, ["validate", "triage"])
    after = read(workspace, "triage/summary.json")
    assert after["reasons"]["label"] == accused.sum() - 1
    assert after["estimated_label_errors"] == accused.sum()
    page = (workspace / "artifacts/triage/sheet.html").read_text()
    assert f"{accused.sum()} have a label that is more likely wrong than right" in page


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
