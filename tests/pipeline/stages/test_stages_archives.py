"""The stages give the same from archives as from a file for each film."""

import pandas as pd

from openmed.archives import pack, place_of
from openmed.files import hashes_below
from openmed.inference.checkpoint import load_model
from pipeline.registry.retraining import films_of
from pipeline.registry.scoring import film_scores
from tests.conftest import run_stages


def put_into_archives(data, monkeypatch):
    """Packs the films of a data folder, in the order of its list, which else stays as it is."""
    monkeypatch.setattr("openmed.archives.ARCHIVE_FILMS", 25)
    films = pd.read_csv(data / "films.csv", dtype=str, keep_default_na=False)
    contents = [(path, (data / path).read_bytes()) for path in films["path"]]
    for path in films["path"]:
        (data / path).unlink()
    films["path"] = list(pack(data, contents))
    films.to_csv(data / "films.csv", index=False)


def test_every_stage_that_reads_films_gives_the_same_from_archives(workspace, monkeypatch):
    artifacts = workspace / "artifacts"
    model = load_model(artifacts / "evaluate/vit/model")
    before, files = hashes_below(artifacts), films_of(workspace)
    scores = film_scores(model, workspace / "data", files)
    manifest = pd.read_parquet(artifacts / "validate/manifest.parquet")
    put_into_archives(workspace / "data", monkeypatch)
    run_stages(workspace, ["validate", "split", "preprocess", "explain@vit", "triage"])
    after = hashes_below(artifacts)
    changed = {name for name in before if before[name] != after.get(name)}
    # The report names the manifest by its hash.
    assert before.keys() == after.keys()
    assert changed == {"validate/manifest.parquet", "explain/vit/report.html"}
    again = pd.read_parquet(artifacts / "validate/manifest.parquet")
    assert again["path"].map(lambda path: place_of(path).name).equals(manifest["path"])
    assert again["path"].str.startswith("films/0000").all()
    pd.testing.assert_frame_equal(again.drop(columns="path"), manifest.drop(columns="path"))
    pd.testing.assert_frame_equal(film_scores(model, workspace / "data", films_of(workspace)), scores)
