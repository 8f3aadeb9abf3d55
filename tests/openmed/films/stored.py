"""One film stored in many ways: what tests of decoders, bad files and fuzzing are made of."""

import io
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from openmed.phantoms.phantom import draw

DX_IMAGE = "1.2.840.10008.5.1.4.1.1.1.1"


def phantom(size_px: int = 64) -> np.ndarray:
    return draw(1, 1, pneumonia=True, size_px=size_px).film


def deep(film: np.ndarray, bits: int) -> np.ndarray:
    """The same film in more bits, uint16."""
    return np.rint(film * ((2**bits - 1) / 255)).astype(np.uint16)


def pil(image, kind: str, **options) -> bytes:
    """The file that Pillow writes of an image or array."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def dataset(pixels: np.ndarray, **elements) -> Dataset:
    """A film as an uncompressed DX image; further elements replace or add, None takes one away."""
    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film.file_meta.MediaStorageSOPClassUID = film.SOPClassUID = DX_IMAGE
    film.file_meta.MediaStorageSOPInstanceUID = film.SOPInstanceUID = generate_uid(entropy_srcs=["film"])
    film.Modality, film.Rows, film.Columns = "DX", *pixels.shape[:2]
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME2"
    if pixels.ndim == 3:
        film.SamplesPerPixel, film.PhotometricInterpretation, film.PlanarConfiguration = 3, "RGB", 0
    film.BitsAllocated = film.BitsStored = elements.pop("BitsStored", 8 * pixels.itemsize)
    film.BitsAllocated = 8 * pixels.itemsize
    film.HighBit = film.BitsStored - 1
    film.PixelRepresentation = int(pixels.dtype.kind == "i")
    film.add_new("PixelData", "OB" if pixels.itemsize == 1 else "OW", pixels.tobytes())
    for name, value in elements.items():
        if value is None:
            del film[name]
        else:
            setattr(film, name, value)
    return film


def written(film: Dataset, **options) -> bytes:
    """The bytes of a DICOM file."""
    stream = io.BytesIO()
    film.save_as(stream, enforce_file_format=True, **options)
    return stream.getvalue()


def dicom(pixels: np.ndarray, **elements) -> bytes:
    return written(dataset(pixels, **elements))


def compressed(pixels: np.ndarray, syntax: str, *, encoder: dict | None = None, **elements) -> bytes:
    """Compressed by pydicom and its plugins: RLE and JPEG 2000."""
    film = dataset(pixels, **elements)
    film.compress(syntax, generate_instance_uid=False, **(encoder or {}))
    return written(film)


def wrapped(stream: bytes, pixels: np.ndarray, syntax: str, **elements) -> bytes:
    """A finished codestream in a DICOM file."""
    film = dataset(pixels, **elements)
    film.file_meta.TransferSyntaxUID = syntax
    film.PixelData = encapsulate([stream])
    film["PixelData"].is_undefined_length = True
    return written(film)


def transcoded(content: bytes, syntax: str, folder: Path, *, near: int = 0) -> bytes:
    """Compressed by GDCM: JPEG and JPEG-LS. `near` is what a grey level of JPEG-LS may be off."""
    import gdcm

    source, target = folder / "source.dcm", folder / "target.dcm"
    source.write_bytes(content)
    reader = gdcm.ImageReader()
    reader.SetFileName(str(source))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    if near:
        codec = gdcm.JPEGLSCodec()
        codec.SetLossless(False)
        codec.SetLossyError(near)
        change.SetUserCodec(codec)
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    assert str(pydicom.dcmread(target).file_meta.TransferSyntaxUID) == syntax
    return target.read_bytes()
