"""External sets to test with: phantoms of patients that no sample has, as a list with all its columns."""

import csv
import subprocess
import sys

import cv2

from openmed.intake.external_set import import_set
from openmed.phantoms.phantom import draw
from openmed.privacy.cleaning import Pseudonyms

CLASSES = ("NORMAL", "PNEUMONIA")
SECRET = Pseudonyms(b"a secret of the site")
COLUMNS = ("path", "label", "patient", "view", "sex", "age_band", "source", "reader")
FIRST_PATIENT = 5000


def write_list(
    folder, patients=24, *, labels=(0, 1), size_px=96, change=lambda film: film, first=FIRST_PATIENT
):
    """Writes phantoms, two films a patient (AP and PA), and their films.csv; returns its path."""
    folder.mkdir(parents=True)
    rows = []
    for patient in range(patients):
        label = labels[patient % len(labels)]
        for number, view in enumerate(("AP", "PA")):
            drawn = draw(first + patient, number, pneumonia=bool(label), size_px=size_px).film
            name = f"Jane-Doe-{patient:03d}_{view}.png"
            cv2.imwrite(str(folder / name), change(drawn))
            band = ("20-39", "80+")[patient // 2 % 2]
            reader = ("Clear lungs", "Lung Opacity")[label if patient % 5 else 1 - label]
            rows.append(
                (name, CLASSES[label], f"Jane Doe {patient}", view.lower(), "f", band, "elsewhere", reader)
            )
    with (folder / "films.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([COLUMNS, *rows])
    return folder / "films.csv"


def put_set(project, name, source):
    """Puts a list as a set into a project, with the pointer that `dvc add` writes; needs no DVC there."""
    folder = project / "external" / name
    import_set(
        source,
        folder,
        class_names=CLASSES,
        pseudonyms=SECRET,
        aliases={"Clear lungs": "NORMAL", "Lung Opacity": "PNEUMONIA"},
        second_label="reader",
    )
    pin(folder)
    return folder


def pin(folder):
    """Writes the pointer of a set."""
    from pipeline.tools.dvc_lock import dvc_md5

    folder.with_name(f"{folder.name}.dvc").write_text(
        f"outs:\n- md5: {dvc_md5(folder)}\n  hash: md5\n  path: {folder.name}\n"
    )


def run(folder, *command):
    """Runs a command that must end well; `dvc` is the one of this environment."""
    command = (sys.executable, "-m", *command) if command[0] == "dvc" else command
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
