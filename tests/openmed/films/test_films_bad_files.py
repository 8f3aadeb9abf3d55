"""Every kind of file has one stated outcome; docs/films.md shows the same table to people."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmwrite, uid
from pydicom.dataset import Dataset, FileMetaDataset

from openmed.cache.film_store import FilmStore
from openmed.dataset.manifest import measure_films, read_films
from openmed.errors import BadInput
from openmed.films.images import usable_squares
from openmed.intake.importing import import_films
from tests.conftest import ROOT
from tests.openmed.films.stored import (
    compressed,
    dataset,
    deep,
    dicom,
    phantom,
    pil,
    transcoded,
    wrapped,
    written,
)

CLASSES = ("NORMAL", "PNEUMONIA")
FILM = phantom(64)
COLOUR = np.dstack([FILM] * 3)
HEADER = "path,label,patient,split\n"


def bare_png(width: int, height: int, rows: bytes = b"") -> bytes:
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def pages(kind: str) -> bytes:
    return pil(FILM, kind, save_all=True, append_images=[Image.fromarray(255 - FILM)])


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return pil(FILM, "JPEG", exif=exif)


def deflated() -> bytes:
    film = dataset(FILM)
    film.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    return written(film)


def directory() -> bytes:
    film = dataset(FILM, PixelData=None, DirectoryRecordSequence=[Dataset()])
    film.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    return written(film)


def document() -> bytes:
    return written(dataset(FILM, PixelData=None, EncapsulatedDocument=b"%PDF-1.4"))


def twelve_bit_jpeg(folder: Path) -> bytes:
    return transcoded(dicom(deep(FILM, 12), BitsStored=12), uid.JPEGExtended12Bit, folder)


def lossless_jpeg(folder: Path) -> bytes:
    return transcoded(dicom(deep(FILM, 12), BitsStored=12), uid.JPEGLosslessSV1, folder)


NO_FILM = "quarantined: the film is not a JPEG, PNG, TIFF or DICOM image"
DAMAGED = "quarantined: the film cannot be decoded: it is damaged"
# kind of file -> (its name, its content or what makes it, what becomes of it when a list names it)
FILMS = {
    "grey JPEG": ("a.jpeg", pil(FILM, "JPEG"), "accepted"),
    "progressive JPEG": ("a.jpg", pil(FILM, "JPEG", progressive=True), "accepted"),
    "JPEG in colour": ("a.jpg", pil(COLOUR, "JPEG"), "accepted"),
    "JPEG in CMYK": ("a.jpg", pil(Image.fromarray(COLOUR).convert("CMYK"), "JPEG"), "accepted"),
    "JPEG turned by its Exif orientation": ("a.jpg", turned(), "accepted"),
    "PNG with a palette": ("a.png", pil(Image.fromarray(FILM).convert("P"), "PNG"), "accepted"),
    "PNG with transparency": ("a.png", pil(np.dstack([COLOUR, FILM]), "PNG"), "accepted"),
    "PNG of 16 bits": ("a.png", pil(deep(FILM, 16), "PNG"), "accepted"),
    "PNG of 12 bits in 16": ("a.png", pil(deep(FILM, 12), "PNG"), "accepted"),
    "PNG of 12 bits in 16 with a saturated marker": ("a.png", lambda folder: _with_marker(), "accepted"),
    "TIFF of 8 or 16 bits": ("a.tif", pil(deep(FILM, 16), "TIFF", compression="tiff_lzw"), "accepted"),
    "DICOM, MONOCHROME1": ("a.dcm", dicom(255 - FILM, PhotometricInterpretation="MONOCHROME1"), "accepted"),
    "DICOM of 12 bits, lossless JPEG": ("a.dcm", lossless_jpeg, "accepted"),
    "DICOM without preamble, file header or transfer syntax": (
        "a.dcm",
        lambda folder: _headless(),
        "accepted",
    ),
    "DICOM with a window that shows nothing, such as 0/1": (
        "a.dcm",
        dicom(FILM, WindowCenter=0, WindowWidth=1),
        "accepted",
    ),
    "DICOM, JPEG 2000": ("a.dcm", compressed(FILM, uid.JPEG2000Lossless), "accepted"),
    "wrong suffix: JPEG named .png": ("a.png", pil(FILM, "JPEG"), "accepted"),
    "wrong suffix: DICOM named .jpg": ("a.jpg", dicom(FILM), "accepted"),
    "a name in other letters": ("Lunge-Größe-肺.png", pil(FILM, "PNG"), "accepted"),
    "a link to a film": ("a.png", lambda folder: _link(folder, pil(FILM, "PNG")), "accepted"),
    "no bytes": ("a.png", b"", "quarantined: the film is empty"),
    "text": ("a.png", b"no film\n" * 99, NO_FILM),
    "GIF, BMP or WebP named .png": ("a.png", pil(FILM, "GIF"), NO_FILM),
    "truncated JPEG": ("a.jpg", pil(FILM, "JPEG")[:-300], "quarantined: the film is not a whole JPEG image"),
    "half a JPEG with its end mark": (
        "a.jpg",
        pil(FILM, "JPEG")[:-700] + b"\xff\xd9",
        "quarantined: the film is not a whole JPEG image",
    ),
    "truncated PNG": ("a.png", pil(FILM, "PNG")[:-300], "quarantined: the film is not a whole PNG image"),
    "truncated TIFF": ("a.tif", pil(FILM, "TIFF")[:-300], DAMAGED),
    "PNG with a wrong checksum": (
        "a.png",
        pil(FILM, "PNG").replace(b"IEND\xae", b"IEND\xaf"),
        "quarantined: the film is not a whole PNG image",
    ),
    "TIFF with a damaged JPEG inside": (
        "a.tif",
        lambda folder: _damaged_jpeg_in_tiff(),
        "quarantined: the film is not a whole JPEG image",
    ),
    "truncated DICOM": ("a.dcm", dicom(FILM)[:-300], DAMAGED),
    "DICOM with half a JPEG": (
        "a.dcm",
        wrapped(pil(FILM, "JPEG")[:-700] + b"\xff\xd9", FILM, uid.JPEGBaseline8Bit),
        "quarantined: the film is not a whole JPEG image",
    ),
    "header of 50,000 x 50,000 pixels": (
        "a.png",
        bare_png(50_000, 50_000),
        "quarantined: the film claims 2500000000 pixels; a film has at most 64000000",
    ),
    "decompression bomb: a stream far larger than its header says": (
        "a.png",
        bare_png(64, 64, bytes(64_000_000)),
        "quarantined: the film is blank",
    ),
    "fewer than 16 pixels a side": (
        "a.png",
        pil(FILM[:8], "PNG"),
        "quarantined: the film is 64 x 8 pixels; a film has at least 16 a side",
    ),
    "smaller than `min_side_px`": ("a.png", pil(FILM[:20], "PNG"), "quarantined: only 64 x 20 pixels"),
    "longer than 65,535 pixels": (
        "a.png",
        bare_png(70_000, 64),
        "quarantined: the film is 70000 x 64 pixels; a film has at most 65535 a side",
    ),
    "one grey value": ("a.png", pil(np.full_like(FILM, 90), "PNG"), "quarantined: the film is blank"),
    "nothing but black, white or noise, with or without a marker": (
        "a.png",
        lambda folder: _black_with_marker(),
        "quarantined: the film is blank",
    ),
    "animated PNG": ("a.png", pages("PNG"), "quarantined: the film has several frames; a film has one"),
    "TIFF of several pages": (
        "a.tif",
        pages("TIFF"),
        "quarantined: the film has several pages; a film has one",
    ),
    "TIFF of 32-bit or floating-point pixels": (
        "a.tif",
        pil(FILM.astype(np.float32), "TIFF"),
        "quarantined: the film stores 32-bit pixels; films have 8 to 16 bits",
    ),
    "DICOM of several frames": (
        "a.dcm",
        dicom(FILM, NumberOfFrames=2, PixelData=FILM.tobytes() * 2),
        "quarantined: the film has several frames; a film has one",
    ),
    "DICOM of several frames without NumberOfFrames": (
        "a.dcm",
        dicom(FILM, PixelData=FILM.tobytes() * 2),
        "quarantined: the film has several frames; a film has one",
    ),
    "DICOM whose pixels do not fit Rows x Columns": (
        "a.dcm",
        dicom(FILM, Rows=40),
        "quarantined: the film is damaged: its image has another size than its header says",
    ),
    "DICOMDIR, report or document in DICOM": (
        "a.dcm",
        document(),
        "quarantined: the film is DICOM without an image",
    ),
    "deflated DICOM": (
        "a.dcm",
        deflated(),
        "quarantined: the film is a deflated DICOM file: store it in another transfer syntax",
    ),
    "DICOM, lossy JPEG of more than 8 bits": (
        "a.dcm",
        twelve_bit_jpeg,
        "quarantined: the film is a lossy JPEG of more than 8 bits: store it in another transfer syntax",
    ),
    "DICOM, video": (
        "a.dcm",
        lambda folder: _video(),
        "quarantined: the film is DICOM in a transfer syntax that is not read: store it uncompressed",
    ),
    "DICOM of 32 bits": (
        "a.dcm",
        dicom(FILM.astype(np.uint32)),
        "quarantined: the film stores 32 of 32 bits; films have 8 to 16",
    ),
    "DICOM whose stream has another size than its header": (
        "a.dcm",
        lambda folder: _other_size(),
        "quarantined: the film is damaged: its image has another size than its header says",
    ),
    "listed but not there": (
        "a.png",
        lambda folder: None,
        "quarantined: cannot be read: No such file or directory",
    ),
    "a link that leads to itself": (
        "a.png",
        lambda folder: (folder / "a.png").symlink_to("a.png"),
        "quarantined: cannot be read: Too many levels of symbolic links",
    ),
    "a folder named .png": (
        "a.png",
        lambda folder: (folder / "a.png").mkdir(),
        "quarantined: cannot be read: Is a directory",
    ),
}


def _link(folder: Path, content: bytes) -> None:
    (folder / "other").write_bytes(content)
    (folder / "a.png").symlink_to("other")


def _with_marker() -> bytes:
    film = deep(FILM, 12)
    film[4:10, 4:10] = 65_535
    return pil(film, "PNG")


def _black_with_marker() -> bytes:
    film = np.zeros_like(FILM)
    film[4:10, 4:10] = 255
    return pil(film, "PNG")


def _headless() -> bytes:
    film, stream = dataset(FILM), io.BytesIO()
    film.file_meta = FileMetaDataset()
    dcmwrite(stream, film, implicit_vr=True, little_endian=True, enforce_file_format=False)
    return stream.getvalue()


def _damaged_jpeg_in_tiff() -> bytes:
    content = pil(FILM, "TIFF", compression="jpeg")
    return content[:500] + bytes(200) + content[700:]


def _video() -> bytes:
    film = dataset(FILM)
    film.file_meta.TransferSyntaxUID = uid.MPEG2MPML
    film["PixelData"].is_undefined_length = True
    film.PixelData = b"\xfe\xff\x00\xe0\0\0\0\0"
    return written(film)


def _other_size() -> bytes:
    film = dataset(FILM)
    film.compress(uid.JPEG2000Lossless, generate_instance_uid=False)
    film.Rows = 32
    return written(film)


# kind of list -> (rows of films.csv below its header, or the whole list; what its reader says)
LISTS = {
    "the same film twice": (
        "a.png,NORMAL,p,\na.png,NORMAL,p,\n",
        "has a path that was listed before in 1 row(s)",
    ),
    "an unknown label": ("a.png,COVID,p,\n", "has a label other than NORMAL, PNEUMONIA in 1 row(s)"),
    "an unknown split": ("a.png,NORMAL,p,exam\n", "has an unknown split in 1 row(s)"),
    "no patient": ("a.png,NORMAL,,\n", "has no patient in 1 row(s)"),
    "a path that leads out": ("../a.png,NORMAL,p,\n", "has a path outside the data folder in 1 row(s)"),
    "no rows": ("", "lists no films"),
}
FOLDERS = {
    "class folders with one class only": (
        ["NORMAL/a.png"],
        "has no film of class PNEUMONIA: every class needs films",
    ),
    "images in a folder that is no class": (
        ["NORMAL/a.png", "PNEUMONIA/b.png", "x/c.png"],
        "is an image in a folder that is no class folder",
    ),
    "no class folders": (["x/a.png"], "has no folder named after a class (NORMAL, PNEUMONIA)"),
    "a line break in a name": (
        ["NORMAL/a\nb.png", "PNEUMONIA/b.png"],
        "has unusable characters in its name: rename it",
    ),
    "two names that differ in case": (
        ["NORMAL/a.png", "NORMAL/A.png", "PNEUMONIA/b.png"],
        "has two films that would be stored under one name",
    ),
    "a film in a class folder that is a link to itself": (
        ["NORMAL/a.png", "PNEUMONIA/loop.png"],
        "cannot be read (Too many levels of symbolic links)",
    ),
}


def refused(data: bytes) -> str | None:
    """What a model that is asked says of the same bytes."""
    try:
        usable_squares(data, [32], "the film")
    except BadInput as error:
        return str(error).removeprefix("the film cannot be used: ")
    return None


def outcome(folder: Path, name: str, make) -> str:
    """What the pipeline makes of one listed file."""
    content = make(folder) if callable(make) else make
    if content is not None:
        (folder / name).write_bytes(content)
    (folder / "films.csv").write_text(f"{HEADER}{name},NORMAL,p,\n", encoding="utf-8")
    with FilmStore(folder / "store") as store:
        row = measure_films(folder, read_films(folder, CLASSES), store).iloc[0]
    return ": ".join(filter(None, (row["status"], row["reason"])))


@pytest.mark.parametrize("kind", FILMS)
def test_each_kind_of_film_has_its_stated_outcome(tmp_path, kind):
    name, make, stated = FILMS[kind]
    found = outcome(tmp_path, name, make)
    assert found == stated or (stated == DAMAGED and found.startswith(f"{DAMAGED} ("))
    if (tmp_path / name).is_file():
        # Whoever asks a model of the same film hears the same sentence.
        assert refused((tmp_path / name).read_bytes()) == (
            None if found == "accepted" else found.removeprefix("quarantined: ")
        )


@pytest.mark.parametrize("kind", ["BMP", "WEBP"])
def test_other_formats_fare_like_the_one_in_the_table(tmp_path, kind):
    assert outcome(tmp_path, "a.png", pil(FILM, kind)) == NO_FILM


def test_other_dicom_without_an_image_fares_like_the_one_in_the_table(tmp_path):
    report = written(
        dataset(FILM, PixelData=None, Modality="SR", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    )
    for content in (directory(), report):
        assert outcome(tmp_path, "a.dcm", content) == "quarantined: the film is DICOM without an image"


@pytest.mark.parametrize("kind", LISTS)
def test_each_bad_list_is_refused_as_stated(tmp_path, kind):
    rows, sentence = LISTS[kind]
    (tmp_path / "films.csv").write_text(HEADER + rows)
    with pytest.raises(BadInput) as refusal:
        read_films(tmp_path, CLASSES)
    assert sentence in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", FOLDERS)
def test_each_bad_folder_is_refused_as_stated(tmp_path, kind):
    paths, sentence = FOLDERS[kind]
    for path in paths:
        target = tmp_path / "source" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.stem == "loop":
            target.symlink_to(target.name)
        else:
            target.write_bytes(pil(FILM + paths.index(path), "PNG"))
    with pytest.raises(BadInput) as refusal:
        import_films(tmp_path / "source", tmp_path / "data", class_names=CLASSES)
    assert sentence in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (tmp_path / "data").exists()


def table() -> str:
    """The table of docs/films.md."""
    rows = [(kind, stated) for kind, (_, _, stated) in FILMS.items()]
    rows += [(f"list with {kind}", f"refused: {sentence}") for kind, (_, sentence) in LISTS.items()]
    rows += [(f"folder: {kind}", f"refused: {sentence}") for kind, (_, sentence) in FOLDERS.items()]
    return "".join(
        f"| {kind} | {stated} |\n" for kind, stated in [("kind of file", "outcome"), ("---", "---"), *rows]
    )


def test_the_table_for_people_is_this_one():
    assert table() in (ROOT / "docs/films.md").read_text()
