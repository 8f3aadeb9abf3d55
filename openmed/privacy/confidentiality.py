"""DICOM films written anew: pixels, the numbers that make grey levels of them, words of closed lists.

After the basic application level confidentiality profile of DICOM PS3.15, annex E. No element is copied.
What the decoder understood of a film is written into a new file, so that what it did not look at (elements,
fragments, segments of a codestream, bytes behind the pixels, bits beside them, entries of tables that no
pixel reaches) cannot come along.
"""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from openmed.errors import BadInput
from openmed.films.dicom.grey_levels import after_modality, number_in, table_in, through_palettes
from openmed.films.dicom.header import LOSSY_JPEG
from openmed.films.dicom.pixels import decode_dicom, stored_and_grey
from openmed.privacy.scrub import cut_jpeg

if TYPE_CHECKING:
    from pydicom import Dataset

_EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
_X_RAY = "1.2.840.10008.5.1.4.1.1."
_SECONDARY_CAPTURE = f"{_X_RAY}7"
_CLASSES = [f"{_X_RAY}{end}" for end in ("1", "1.1", "1.1.1", "7", "12.1", "12.2")]
WORDS = {
    "Modality": (("CR", "DX", "RG", "RF", "XA", "OT"), "OT"),
    "VOILUTFunction": (("LINEAR", "LINEAR_EXACT", "SIGMOID"), ""),
    "PresentationLUTShape": (("IDENTITY", "INVERSE"), ""),
    "BurnedInAnnotation": (("NO",), ""),
    "SOPClassUID": (tuple(_CLASSES), _SECONDARY_CAPTURE),
}
"""Elements that are kept if they hold one of these words, and what becomes of any other; empty drops it."""
NUMBERS = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth")
"""Elements of which the first number is kept."""
TABLES = ("ModalityLUTSequence", "VOILUTSequence")
"""Tables of which the entries are kept that pixels reach."""
_NAMING = ("BurnedInAnnotation", "RecognizableVisualFeatures")
_OF_GREYS = ("VOILUTFunction", "PresentationLUTShape")
_LARGEST_NUMBER = 1_000_000
_GREYS = ("MONOCHROME1", "MONOCHROME2")
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_PARTIAL_422")
_MOST_ENTRIES, _MOST_SIGNED_ENTRIES = 1 << 16, (1 << 15) - 1


def written_anew(
    content: bytes, new_uid: Callable[[str], str], name: str = "the film"
) -> tuple["Dataset", bytes]:
    """Writes a DICOM film that holds what its grey levels need and no more.

    A lossy JPEG of 8 bits keeps its scans; any other film becomes uncompressed, without loss.

    `new_uid` gives the SOP instance UID that stands for the one that is told.

    Returns:
        The film as it was read but for its pixels, to look facts up in, and the new file.

    Raises:
        BadInput: As `decode_dicom`; or it says that its pixels name somebody, or it cannot be written anew.
        Exception: Whatever pydicom and its decoders raise on damaged content.
    """
    from pydicom.uid import UID

    source, pixels, grey = stored_and_grey(content, name)
    for keyword in _NAMING:
        if (word := word_in(source, keyword)) not in ("", "NO"):
            said = "YES" if word == "YES" else "not NO"
            raise BadInput(f"{name} may show who it is of ({keyword} is {said}): blacken that and correct it")
    film = _described(source, pixels, new_uid(str(source.get("SOPInstanceUID", ""))), name)
    film.file_meta.TransferSyntaxUID = UID(_keep_scans(source, film) or _store(source, film, pixels))
    stream = io.BytesIO()
    film.save_as(stream, enforce_file_format=True)
    clean = stream.getvalue()
    del stream, film, pixels, source.PixelData  # a large film is several hundred megabytes each time
    # Never silently another film: whatever is wrong above, this finds it.
    if not np.array_equal(decode_dicom(clean, name)[0], grey):
        raise BadInput(f"{name} looks otherwise without what may name somebody: store it in a simpler form")
    return source, clean


def _described(source: "Dataset", pixels: np.ndarray, sop_instance_uid: str, name: str) -> "Dataset":
    """A data set with all that is kept, but the pixels."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset

    film = Dataset()
    film.PatientIdentityRemoved = "YES"
    film.DeidentificationMethod = "Written anew from the pixels, after DICOM PS3.15 E"
    is_grey = str(source.PhotometricInterpretation) in _GREYS
    for keyword, (known, other) in WORDS.items():
        word = "" if keyword in _OF_GREYS and not is_grey else word_in(source, keyword)
        if word and (kept := word if word in known else other):
            setattr(film, keyword, kept)
    film.SOPClassUID = film.get("SOPClassUID", _SECONDARY_CAPTURE)
    film.SOPInstanceUID = sop_instance_uid
    film.file_meta = FileMetaDataset()
    film.file_meta.MediaStorageSOPClassUID = film.SOPClassUID
    film.file_meta.MediaStorageSOPInstanceUID = film.SOPInstanceUID
    film.Rows, film.Columns = pixels.shape[:2]
    if is_grey:
        _keep_greys(source, film, pixels, name)
    return film


def word_in(source: "Dataset", keyword: str) -> str:
    """The text of an element in capitals, without blanks around it; empty where there is none."""
    return str(source.get(keyword) or "").strip().upper()


def _keep_greys(source: "Dataset", film: "Dataset", pixels: np.ndarray, name: str) -> None:
    """Keeps what turns stored values into grey levels (DICOM PS3.3 C.11)."""
    from pydicom.sequence import Sequence
    from pydicom.valuerep import DSfloat

    for keyword in NUMBERS:
        if (number := number_in(source, keyword, name, None)) is not None:
            if abs(number) > _LARGEST_NUMBER:
                raise BadInput(f"{name} is damaged: its {keyword} is beyond {_LARGEST_NUMBER}")
            setattr(film, keyword, DSfloat(number, auto_format=True))
    if source.get(TABLES[0]):
        setattr(film, TABLES[0], Sequence([_reached(source[TABLES[0]].value[0], pixels, name)]))
    if source.get(TABLES[1]):
        values, _, _ = after_modality(source, pixels, name)
        setattr(film, TABLES[1], Sequence([_reached(source[TABLES[1]].value[0], values, name)]))


def _reached(table: "Dataset", values: np.ndarray, name: str) -> "Dataset":
    """The part of a table that some value reaches; its highest entry stands for all others."""
    from pydicom import Dataset

    entries, first, bits = table_in(table, values)
    if not 0 < bits <= 16:
        raise BadInput(f"{name} is damaged: a table of it has entries of {bits} bits")
    places = np.rint(values).astype(np.int64).clip(first, first + len(entries) - 1) - first
    reached = np.zeros(len(entries), bool)
    reached[places.ravel()] = True
    low, high = int(places.min()), int(places.max())
    # The highest one is kept, reached or not: it may tell how many bits are used.
    kept = np.append(np.where(reached, entries, entries.max())[low : high + 1], entries.max())[:_MOST_ENTRIES]
    if first + low < 0 and len(kept) > _MOST_SIGNED_ENTRIES:
        raise BadInput(f"{name} has a table too long for negative values: store it in a simpler form")
    part, kind = Dataset(), "SS" if first + low < 0 else "US"
    part.add_new("LUTDescriptor", kind, [len(kept) % _MOST_ENTRIES, first + low, bits])
    part.add_new("LUTData", "OW", kept.astype("<u2").tobytes())
    return part


def _keep_scans(source: "Dataset", film: "Dataset") -> str:
    """Keeps the scans of a lossy JPEG of 8 bits and returns the transfer syntax; empty for other films."""
    from pydicom.encaps import encapsulate, get_frame

    syntax, kind = str(source.file_meta.TransferSyntaxUID), str(source.PhotometricInterpretation)
    known = _COLOURS if int(source.SamplesPerPixel) == 3 else _GREYS
    unsigned_bytes = source.BitsAllocated == 8 and not source.PixelRepresentation
    if syntax not in LOSSY_JPEG or kind not in known or not unsigned_bytes:
        return ""
    if not (stream := cut_jpeg(get_frame(source.PixelData, 0, number_of_frames=1))):
        return ""
    _describe_pixels(film, np.dtype(np.uint8), 8, kind, int(source.SamplesPerPixel))
    film.add_new("PixelData", "OB", encapsulate([stream]))
    film["PixelData"].is_undefined_length = True
    return syntax


def _store(source: "Dataset", film: "Dataset", pixels: np.ndarray) -> str:
    """Stores the pixels uncompressed, nothing beside their bits, and returns the transfer syntax."""
    kind, bits = str(source.PhotometricInterpretation), int(source.BitsStored)
    if kind == "PALETTE COLOR":
        pixels, bits = through_palettes(source, pixels), 8
    if kind not in _GREYS:  # colours are decoded by now, or luma already
        kind = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    signed = pixels.dtype.kind == "i"
    # The decoder may have found more bits in use than the header says.
    used = max(int(pixels.max()), -1 - int(pixels.min())).bit_length() + signed
    bits = max(bits, used)
    dtype = np.dtype(f"<{'i' if signed else 'u'}{1 if bits <= 8 else 2}")
    _describe_pixels(film, dtype, bits, kind, 3 if pixels.ndim == 3 else 1)
    stored = pixels.astype(dtype).tobytes()
    film.add_new("PixelData", "OB" if dtype.itemsize == 1 else "OW", stored + b"\0" * (len(stored) % 2))
    return _EXPLICIT_LITTLE_ENDIAN


def _describe_pixels(film: "Dataset", dtype: np.dtype, bits: int, kind: str, samples: int) -> None:
    film.SamplesPerPixel, film.PhotometricInterpretation = samples, kind
    if samples == 3:
        film.PlanarConfiguration = 0
    film.BitsAllocated, film.BitsStored, film.HighBit = 8 * dtype.itemsize, bits, bits - 1
    film.PixelRepresentation = int(dtype.kind == "i")
