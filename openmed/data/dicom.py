"""DICOM files."""


def is_dicom(data: bytes) -> bool:
    """Tells whether content is a DICOM file."""
    return data[128:132] == b"DICM"
