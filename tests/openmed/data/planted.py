"""Films that carry an identifier wherever a film can."""

import io

import numpy as np
from PIL import Image, PngImagePlugin
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from openmed.data.phantom import draw

FILM = draw(1, 1, pneumonia=True, size_px=64).film
PLANTED = [b"DOE^JANE", b"MRN-4711-9", b"Musterstrasse", b"19610203", b"Dr. Planted", b"9.8.7.6.5.4321"]


def dicom(pixels: np.ndarray = FILM, **fields) -> bytes:
    """A film with an identifier in a standard, a nested, a private and an overlay element."""
    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film.file_meta.MediaStorageSOPClassUID = film.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    film.file_meta.MediaStorageSOPInstanceUID = film.SOPInstanceUID = "9.8.7.6.5.4321"
    film.file_meta.SourceApplicationEntityTitle = "DOE^JANE"
    film.PatientName, film.PatientID, film.PatientBirthDate = "DOE^JANE", "MRN-4711-9", "19610203"
    film.PatientAddress, film.ReferringPhysicianName = "Musterstrasse", "Dr. Planted"
    film.StudyInstanceUID, film.ImageComments = "9.8.7.6.5.4321", "DOE^JANE"
    film.AccessionNumber, film.InstitutionName = "MRN-4711-9", "Musterstrasse"
    nested = Dataset()
    nested.PatientID, nested.IssuerOfPatientID = "MRN-4711-9", "Musterstrasse"
    film.OtherPatientIDsSequence = Sequence([nested])
    block = film.private_block(0x0041, "DOE^JANE", create=True)
    block.add_new(0x01, "LO", "MRN-4711-9")
    film.add_new(0x60000022, "LO", "Dr. Planted")
    film.Modality, film.Rows, film.Columns = "DX", *pixels.shape
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME2"
    film.BitsAllocated = film.BitsStored = 8
    film.HighBit, film.PixelRepresentation, film.PixelData = 7, 0, pixels.tobytes()
    for name, value in fields.items():
        setattr(film, name, value)
    stream = io.BytesIO()
    film.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def jpeg(orientation: int = 1, pixels: np.ndarray = FILM) -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x013B] = orientation, "DOE^JANE", "Dr. Planted"
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", exif=exif, comment=b"MRN-4711-9", quality=90)
    return stream.getvalue() + b"Musterstrasse after the end"


def png(orientation: int = 1, pixels: np.ndarray = FILM) -> bytes:
    exif, text = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112], exif[0x013B] = orientation, "Dr. Planted"
    text.add_text("Patient", "DOE^JANE")
    text.add_itxt("Address", "Musterstrasse", zip=False)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", pnginfo=text, exif=exif)
    return stream.getvalue() + b"MRN-4711-9"


def tiff() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(FILM).save(stream, "TIFF", tiffinfo={270: "DOE^JANE", 315: "Dr. Planted"})
    return stream.getvalue()


def planted_in(content: bytes) -> list[bytes]:
    return [name for name in PLANTED if name in content]
