"""The image formats that can be read, and how the first bytes of a file tell its format."""

from __future__ import annotations

import re

FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
}
"""Each format by Pillow's name, and the usual endings of its files."""

ENDINGS = tuple(ending for endings in FORMATS.values() for ending in endings)
READABLE = ", ".join((*FORMATS, "DICOM", "NIfTI", "MATLAB"))
"""The formats that a model can be asked about, as text for messages."""

SCAN_ENDINGS = (".dcm", ".dicom", ".nii", ".nii.gz", ".mat")
"""Usual endings of DICOM, NIfTI and MATLAB files. Their content decides, not the ending."""

SLICE = re.compile(r"#[0-9]+$")
"""End of the name of an image that is a slice of a file."""

HEAD = 560
"""Number of bytes at the start of a file that its format is recognised by."""

_STARTS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
}
_BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}
_OTHERS = (
    (4, b"ftyphei", "a HEIC picture"),
    (4, b"ftypmif1", "a HEIC picture"),
    (4, b"ftypavif", "an AVIF picture"),
    (4, b"ftyp", "a video"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (0, b"8BPS", "a Photoshop picture"),
    (0, b"\0\0\1\0", "an icon"),
    (0, b"PK\3\4", "a zip archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ\0", "an xz archive"),
    (257, b"ustar", "a tar archive"),
    (128, b"DICM", "a DICOM file"),
    (344, b"n+1\0", "a NIfTI file"),
    (0, b"MATLAB 5.0", "a MATLAB file"),
    (0, b"MATLAB 7.3", "a MATLAB file"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"\x93NUMPY", "a NumPy file"),
    (0, b"NRRD", "an NRRD file"),
    (0, b"%PDF", "a PDF"),
    (0, b"SQLite format 3", "a database"),
)


def image_format(head: bytes) -> str | None:
    """Return the name in `FORMATS` of a file's format by its first `HEAD` bytes; None if it has another format."""
    found = next((name for start, name in _STARTS.items() if head.startswith(start)), None)
    if found is None and head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if found is None and head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return found


def foreign_content(head: bytes) -> str | None:
    """Describe, by its first bytes, a file that has none of the `FORMATS`; None if its content is unknown."""
    if not head:
        return "an empty file"
    return next((what for at, start, what in _OTHERS if head[at : at + len(start)] == start), None)


def readable_kinds() -> str:
    """Return the formats as part of a sentence: "JPEG, PNG and GIF"."""
    names = [name.replace("WEBP", "WebP") for name in FORMATS]
    return f"{', '.join(names[:-1])} and {names[-1]}"
