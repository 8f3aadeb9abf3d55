"""RLE comes out as pydicom and GDCM decode it, and what is too long or too short is damaged."""

import io

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.encaps import get_frame
from pydicom.pixels import pixel_array

from openmed.films.dicom.rle import decode_rle
from tests.openmed.films.stored import compressed, deep, dicom, phantom, transcoded

FILM = phantom(64)
SIGNED = (deep(FILM, 12).astype(int) - 2048).astype(np.int16)
KINDS = {
    "8 bits": FILM,
    "12 bits": deep(FILM, 12),
    "signed": SIGNED,
    "colour": np.dstack([FILM, 255 - FILM, FILM // 2]),
    "runs": np.repeat(FILM[:, :1], 64, axis=1),
}


def decoded(content: bytes) -> np.ndarray:
    film = pydicom.dcmread(io.BytesIO(content))
    stream = get_frame(film.PixelData, 0, number_of_frames=1)
    kind = np.dtype(f"{'i' if film.PixelRepresentation else 'u'}{film.BitsAllocated // 8}")
    return decode_rle(stream, (film.Rows, film.Columns), film.SamplesPerPixel, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_rle_is_decoded_as_by_pydicom_and_from_gdcm(tmp_path, kind):
    for content in (
        compressed(KINDS[kind], uid.RLELossless),
        transcoded(dicom(KINDS[kind]), uid.RLELossless, tmp_path),
    ):
        film = pydicom.dcmread(io.BytesIO(content))
        np.testing.assert_array_equal(decoded(content), pixel_array(film, raw=True))
        np.testing.assert_array_equal(decoded(content), KINDS[kind])


@pytest.mark.parametrize(
    "packed",
    [b"\x0f" + bytes(15), bytes([257 - 64] * 2) + b"\x0f" + bytes(30), b"\x81\x01" * 9, b"", b"\x80" * 64],
)
def test_a_segment_of_another_length_is_damaged(packed):
    head = np.array([1, 64, *[0] * 14], "<u4").tobytes()
    with pytest.raises(ValueError, match="values for 1024 pixels"):
        decode_rle(head + packed, (32, 32), 1, np.dtype("u1"))


def test_a_hole_in_a_segment_is_damage():
    content = compressed(FILM, uid.RLELossless)
    film = pydicom.dcmread(io.BytesIO(content))
    stream = get_frame(film.PixelData, 0, number_of_frames=1)
    damaged = stream[:2000] + bytes(200) + stream[2200:]
    with pytest.raises(ValueError, match="values for 4096 pixels"):
        decode_rle(damaged, (64, 64), 1, np.dtype("u1"))
