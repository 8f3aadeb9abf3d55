"""Makes state.tar.xz, a small state folder with all that people decide, by the code of its own checkout.

It was run once, in a clone of the revision 83301dc, whose modules it imports:

    python -m tests.pipeline.data.make_state state.tar.xz

The archive holds `home` (the state folder, without the film store, which is a cache), `film.jpeg` and
`answer.json` (what `openmed predict` of that revision said of it), and `change_plan.yaml` of version 1.
"""

import json
import os
import shutil
import sqlite3
import sys
import tarfile
import tempfile
from contextlib import closing
from pathlib import Path

import yaml

FILMS, SIZE_PX = 112, 48


def settings(number):
    from tests.conftest import toy_params

    params = toy_params()
    params["architectures"] = ["vit"]
    params["preprocess"]["image_size_px"] = {"vit": 24}
    params["train"] = {"vit": params["train"]["vit"]}
    params["train"]["vit"]["model_options"] = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    params["train"]["vit"]["head"]["epochs"] = 0
    # Another seed would draw other test films, which is outside the plan.
    params["train"]["vit"]["finetune"] |= {"epochs": 12 + number, "learning_rate": 3e-3}
    params["evaluate"] |= {"floors": {"sensitivity": 0.0, "specificity": 0.0, "auc": 0.0}}
    params["explain"] = {"examples": 1, "checked_films": 8}
    params["drift"]["replicates"] = 100
    return params


def retrain(folder, number, *, monitored=60):
    from pipeline import registry
    from tests.conftest import ROOT, run_stages, write_params, write_plan
    from tests.pipeline.conftest import write_lock

    shutil.rmtree(folder / "artifacts", ignore_errors=True)
    write_params(folder, settings(number))
    write_plan(folder)
    plan = yaml.safe_load((folder / "change_plan.yaml").read_text())
    plan["protocol"]["monitoring"] |= {"films": monitored, "min_patients": 20}
    (folder / "change_plan.yaml").write_text(yaml.safe_dump(plan))
    for name in ("dvc.yaml", "decisions.csv"):
        shutil.copy(ROOT / name, folder)
    (folder / "data.dvc").write_text("outs:\n- md5: 0123456789abcdef0123456789abcdef.dir\n  path: data\n")
    each = ["train@vit", "evaluate@vit", "external@vit", "explain@vit"]
    run_stages(folder, ["validate", "split", "preprocess", "resample", *each])
    # Pictures are most of it, and nothing reads them.
    explained = folder / "artifacts/explain/vit"
    for picture in (explained / "examples").iterdir():
        picture.unlink()
    (explained / "report.html").write_text("<p>Report</p>")
    revision = f"{number:040x}"
    made = registry.register_candidates(
        write_lock(folder), run_key=f"run-{number}", revision=revision, started_by="Ms Engineer"
    )
    assert made["version"] == str(number)


def decide(folder):
    """Three retrainings: the first becomes champion, the second is turned down, the third replaces it."""
    from pipeline import promotion

    def promote(version, champion):
        promotion.show(version, workspace=folder)
        both = {"clinical": "Dr Adams", "technical": "Mr Brown"}
        promotion.promote(version, approved_by=both, comment="looks right", expected_champion=champion)

    retrain(folder, 1)
    promote("1", None)
    retrain(folder, 2)
    promotion.show("2", workspace=folder)
    promotion.reject("2", by="Dr Adams", reason="heat maps off the lung")
    retrain(folder, 3, monitored=50)
    promotion.adopt("3", by="Dr Adams", reason="fewer films are enough")
    promote("3", "1")
    promotion.hold("1", by="Mr Brown", reason="an old machine")
    promotion.hold("3", by="Dr Adams", reason="a miss was reported")
    promotion.release("3", by="Mr Brown", reason="the film was of a foot")


def monitor(root, home):
    from openmed.data.phantom import write_sample
    from pipeline.live import add_labels, ask, score_films, watch

    new = root / "new"
    write_sample(new, films=60, seed=11, size_px=SIZE_PX)
    shutil.move(new / "films", root / "incoming")
    print(score_films(home, root / "incoming"))
    ask(home, 10)
    print(add_labels(home, root / "incoming", ["NORMAL", "PNEUMONIA"]))
    print(watch(home)["sentence"])


def predict(root):
    from pipeline import registry
    from pipeline.inference import assemble, predict_films

    film = next(iter(sorted((root / "incoming/PNEUMONIA").iterdir())))
    shutil.copy(film, root / "film.jpeg")
    model = f"models:/{registry.MODEL_NAME}@champion"
    (answer,) = predict_films(assemble([model]), [root / "film.jpeg"], model)
    (root / "answer.json").write_text(json.dumps(answer | {"path": "film.jpeg"}))
    shutil.copy(registry.artifact("1", "change_plan.yaml"), root)


def pack(root, target):
    """Packs what is read of a state folder, without owners and times."""
    with closing(sqlite3.connect(root / "home/mlflow.db")) as store:
        store.execute("VACUUM")
    for name in ("films", "checkpoints"):
        shutil.rmtree(root / "home" / name, ignore_errors=True)
    for unread in (*(root / "home").glob("*.lock"), root / "home/watch/watch.html"):
        unread.unlink()

    def plain(entry):
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return entry

    with tarfile.open(target, "w:xz", preset=9) as archive:
        for name in ("answer.json", "change_plan.yaml", "film.jpeg", "home"):
            archive.add(root / name, name, filter=plain)


def main(target):
    from openmed.data.phantom import write_sample

    with tempfile.TemporaryDirectory(prefix="openmed-") as name:
        root = Path(name)
        os.environ |= {"OPENMED_HOME": str(root / "home"), "LOGNAME": "openmed", "USER": "openmed"}
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        (root / "home").mkdir()
        (root / "project").mkdir()
        write_sample(root / "project/data", films=FILMS, size_px=SIZE_PX)
        decide(root / "project")
        monitor(root, root / "home")
        predict(root)
        pack(root, Path(target).resolve())


if __name__ == "__main__":
    main(sys.argv[1])
