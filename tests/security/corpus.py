"""The hostile corpus: archives and images made to harm whoever opens them, each with what has to come of it.

``python -m tests.security.corpus FOLDER`` writes all of them to a folder, to try other programs on.
"""

from __future__ import annotations

import io
import stat
import struct
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from brainmri_core.config.data import ArchiveLimits

PATIENT = "CANARY^PATIENT^4711"
LIMITS = ArchiveLimits(max_files=50, max_total_bytes=4_000_000, max_file_bytes=3_000_000, max_ratio=100)
Entry = tuple[str, bytes, int]  # name, content, kind of file in the upper half of the external attributes


@dataclass(frozen=True)
class Hostile:
    """One file of the corpus.

    Attributes
    ----------
    refusal : str or None
        Part of the reason it is refused with; None where it has to be taken.
    """

    data: bytes
    refusal: str | None


def archive(*entries: str | Entry, method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of the entries, with one harmless file before them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of the duplicate names this is after
        for entry in ("good/0.jpg", *entries):
            name, data, kind = (entry, b"x", stat.S_IFREG) if isinstance(entry, str) else entry
            info = zipfile.ZipInfo("x")
            info.filename, info.external_attr, info.compress_type = name, (kind | 0o644) << 16, method
            opened.writestr(info, data)
    return buffer.getvalue()


def encrypted() -> bytes:
    """An archive whose last entry says that it is encrypted."""
    data = bytearray(archive("a/1.jpg"))
    data[data.rindex(b"PK\x03\x04") + 6] |= 1
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def overlapping() -> bytes:
    """Two entries of the listing that are one and the same piece of data, as flat zip bombs are built."""
    data = bytearray(archive(("a/1.jpg", bytes(9000), stat.S_IFREG), ("a/2.jpg", bytes(9000), stat.S_IFREG)))
    second = data.rindex(b"PK\x01\x02")
    first = data.rindex(b"PK\x01\x02", 0, second)
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    return bytes(data)


def lying() -> bytes:
    """An entry that unpacks to a thousand times what the listing says."""
    data = bytearray(archive(("a/1.jpg", bytes(1_000_000), stat.S_IFREG), method=zipfile.ZIP_DEFLATED))
    real, said = (1_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little")
    return bytes(data.replace(real, said))


def archives() -> dict[str, Hostile]:
    """The archives by name."""
    deflated = zipfile.ZIP_DEFLATED
    plain = stat.S_IFREG
    bomb = archive(("bomb", bytes(2_000_000), plain), method=deflated)
    kinds = {"link": stat.S_IFLNK, "pipe": stat.S_IFIFO, "block device": stat.S_IFBLK}
    kinds |= {"character device": stat.S_IFCHR, "socket": stat.S_IFSOCK}
    return {
        "climbs out": Hostile(archive("../evil.jpg"), "leaves its folder"),
        "climbs out in the middle": Hostile(archive("a/b/../../../evil.jpg"), "leaves its folder"),
        "absolute": Hostile(archive("/tmp/evil.jpg"), "leaves its folder"),
        "absolute on Windows": Hostile(archive("C:\\evil.jpg"), "leaves its folder"),
        "other separator": Hostile(archive("a\\..\\..\\evil.jpg"), "leaves its folder"),
        "network share": Hostile(archive("//server/evil.jpg"), "leaves its folder"),
        **{kind: Hostile(archive(("a/x", b"/etc", mode)), "link or a device") for kind, mode in kinds.items()},
        "link, then through it": Hostile(archive(("a", b"/tmp", stat.S_IFLNK), "a/evil.jpg"), "link or a device"),
        "ratio bomb": Hostile(bomb, "zip bomb"),
        "size bomb": Hostile(archive(*[(f"{n}", bytes(900_000), plain) for n in range(5)]), "max_total_bytes"),
        "one large file": Hostile(archive(("a", bytes(3_500_000), plain)), "max_file_bytes"),
        "count bomb": Hostile(archive(*[f"a/{n}.jpg" for n in range(60)]), "max_files"),
        "folder bomb": Hostile(archive(*["/".join([f"{n}", *"abcdefghij", "1.jpg"]) for n in range(9)]), "max_files"),
        "endlessly deep": Hostile(archive("/".join(["a"] * 40)), "32 folders deep"),
        "overlapping entries": Hostile(overlapping(), "share their bytes"),
        "more than declared": Hostile(lying(), "damaged"),
        "archive in an archive": Hostile(archive(("inner.zip", bomb, plain)), None),
        "encrypted": Hostile(encrypted(), "encrypted"),
        "equal names": Hostile(archive("a/1.jpg", "a/1.jpg"), "one file on some systems"),
        "names equal but for case": Hostile(archive("a/x.jpg", "a/X.jpg"), "one file on some systems"),
        "names equal but for composition": Hostile(archive("a/é.jpg", "a/e\u0301.jpg"), "one file on some systems"),
        "folders equal but for case": Hostile(archive("a/x.jpg", "A/y.jpg"), "one folder on some systems"),
        "file and folder": Hostile(archive("a", "a/x.jpg"), "as a file and as a folder"),
        "name of 255 bytes": Hostile(archive("a/" + "n" * 251 + ".jpg"), None),
        "name of 256 bytes": Hostile(archive("a/" + "n" * 252 + ".jpg"), "too long"),
        "name of 256 bytes in 130 characters": Hostile(archive("a/" + "é" * 126 + ".jpg"), "too long"),
        "endless path": Hostile(archive("/".join(["n" * 200] * 11)), "too long"),
        "forged log line": Hostile(archive("a/x\n12:00:00 fetch all is well.jpg"), "control characters"),
        "terminal command": Hostile(archive("a/\x1b]0;owned\x07.jpg"), "control characters"),
        "C1 controls": Hostile(archive("a/\x9b31m.jpg"), "control characters"),
    }  # fmt: skip


def slice_image(side: int = 48) -> Image.Image:
    """A small gray picture without symmetry."""
    y, x = np.mgrid[:side, :side]
    return Image.fromarray(((x * 3 + y * 2) % 200 + 20 * (x > y)).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """An image as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_png_chunk(data: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG file with one more chunk behind its header."""
    return data[:33] + png_chunk(kind, body) + data[33:]


def png_of_size(width: int, height: int, depth: int = 8, rows: bool = False) -> bytes:
    """A gray PNG file that says it is of a size; its rows of zeros only where asked for."""
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    pressed = zlib.compressobj(9)
    body = b"".join(pressed.compress(bytes(1 + width * depth // 8)) for _ in range(height if rows else 1))
    chunks = ((b"IHDR", header), (b"IDAT", body + pressed.flush()), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, content) for kind, content in chunks)


def tiff_of_size(width: int, height: int) -> bytes:
    """A TIFF file that says it is of a size and holds almost nothing."""
    tags = ((256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height))
    entries = b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in (*tags, (279, width * height))
    )
    return b"II*\0" + struct.pack("<IH", 8, len(tags) + 1) + entries + bytes(4)


def exif(orientation: int = 1) -> Image.Exif:
    """EXIF with an orientation and a patient's name."""
    found = Image.Exif()
    found[0x0112] = orientation
    found[0x010E] = found[0x013B] = PATIENT
    return found


def jpeg_segment(marker: int, body: bytes) -> bytes:
    """One segment of a JPEG file."""
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def personal_jpeg(image: Image.Image) -> bytes:
    """A JPEG file that names a patient in its EXIF, its comment and its XMP."""
    data = encoded(image, "JPEG", quality=92, exif=exif(), comment=PATIENT.encode())
    return data[:2] + jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + PATIENT.encode()) + data[2:]


def dicom_like() -> bytes:
    """The beginning of a DICOM file with a patient's name."""
    name = PATIENT.encode() + b" " * (len(PATIENT) % 2)
    return bytes(128) + b"DICM" + b"\x10\x00\x10\x00PN" + struct.pack("<H", len(name)) + name


HTML = b"<html><body><script>alert(1)</script></body></html>"
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>'


def images() -> dict[str, Hostile]:
    """The image files by name."""
    gray = slice_image()
    colour = Image.merge("RGB", (gray, gray.rotate(90), gray))
    png, jpeg, tiff = encoded(gray), encoded(gray, "JPEG", quality=92), encoded(gray, "TIFF")
    many = [gray, gray.rotate(90), gray.rotate(180)]
    unreadable, cut, large = "is not a readable image", "cannot be decoded", "million pixels"
    return {
        "empty.jpg": Hostile(b"", unreadable),
        "one-byte.png": Hostile(b"\x89", unreadable),
        "page.jpg": Hostile(HTML, unreadable),
        "drawing.jpg": Hostile(SVG, unreadable),
        "program.jpg": Hostile(b"\x7fELF" + bytes(500), unreadable),
        "postscript.jpg": Hostile(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n", unreadable),
        "document.png": Hostile(b"%PDF-1.7\n" + bytes(200), unreadable),
        "icon.png": Hostile(encoded(gray, "ICO"), unreadable),
        "portable.bmp": Hostile(encoded(gray, "PPM"), unreadable),
        "jpeg2000.jpg": Hostile(b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(300), unreadable),
        "dicom.jpg": Hostile(dicom_like(), unreadable),
        "cut.jpg": Hostile(jpeg[: len(jpeg) * 6 // 10], cut),
        "header-only.jpg": Hostile(jpeg[:20], cut),
        "cut.png": Hostile(png[: len(png) // 2], cut),
        "cut.tif": Hostile(tiff[: len(tiff) // 2], cut),
        "cut.bmp": Hostile(encoded(gray, "BMP")[:600], cut),
        "cut.webp": Hostile(encoded(gray, "WEBP")[:60], cut),
        "cut.gif": Hostile(encoded(gray, "GIF")[:1500], cut),
        "changed.png": Hostile(png[:60] + bytes(8) + png[68:], cut),
        "pixel-bomb.png": Hostile(png_of_size(50_000, 50_000), large),
        "pixel-bomb.tif": Hostile(tiff_of_size(60_000, 60_000), large),
        "pixel-bomb.jpg": Hostile(jpeg_of_size(jpeg, 65_500, 65_500), large),
        "pixel-bomb.gif": Hostile(gif_of_size(60_000, 60_000), large),
        "thin.png": Hostile(png_of_size(1, 40_000), large),
        "just-over.png": Hostile(png_of_size(9_000, 9_000), large),
        "text-bomb.png": Hostile(with_png_chunk(png, b"zTXt", b"x\0\0" + zlib.compress(bytes(80_000_000), 9)), cut),
        "scan-bomb.jpg": Hostile(encoded(gray, "JPEG", progressive=True) + b"\xff\xda" * 501, "JPEG scans"),
        "really-a.png.jpg": Hostile(png, None),
        "really-a.jpg.png": Hostile(jpeg, None),
        "image-and-archive.jpg": Hostile(jpeg + archive("../evil.jpg"), None),
        "image-and-page.png": Hostile(png + HTML, None),
        "image-with-page-inside.jpg": Hostile(jpeg[:2] + jpeg_segment(0xFE, HTML) + jpeg[2:], None),
        "animation.jpg": Hostile(encoded(gray, "GIF", save_all=True, append_images=many[1:]), None),
        "animated.webp": Hostile(encoded(gray, "WEBP", lossless=True, save_all=True, append_images=many[1:]), None),
        "animated.png": Hostile(encoded(gray, save_all=True, append_images=many[1:]), None),
        "pages.tif": Hostile(encoded(gray, "TIFF", save_all=True, append_images=many[1:]), None),
        "cmyk.jpg": Hostile(encoded(colour.convert("CMYK"), "JPEG", quality=95), None),
        "palette.png": Hostile(encoded(colour.quantize(64)), None),
        "bits.png": Hostile(encoded(gray.convert("1")), None),
        "deep.png": Hostile(encoded(Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)), None),
        "float.tif": Hostile(encoded(Image.fromarray(np.asarray(gray).astype(np.float32)), "TIFF"), None),
        "alpha.png": Hostile(encoded(transparent(gray)), None),
        "huge-exif.jpg": Hostile(huge_exif(jpeg), None),
        "huge-exif.png": Hostile(with_png_chunk(png, b"eXIf", b"Exif\0\0II*\0" + bytes(5_000_000)), None),
        "broken-exif.jpg": Hostile(jpeg[:2] + jpeg_segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff") + jpeg[2:], None),
        "personal.jpg": Hostile(personal_jpeg(gray), None),
    }  # fmt: skip


def jpeg_of_size(jpeg: bytes, width: int, height: int) -> bytes:
    """A JPEG file that says it is of another size."""
    frame = jpeg.index(b"\xff\xc0")
    return jpeg[: frame + 5] + struct.pack(">HH", height, width) + jpeg[frame + 9 :]


def gif_of_size(width: int, height: int) -> bytes:
    """A GIF file of a few bytes that says it is of a size."""
    size = struct.pack("<HH", width, height)
    return b"GIF89a" + size + bytes(3) + b"," + bytes(4) + size + b"\0\2\2\x4c\1\0;"


def transparent(gray: Image.Image) -> Image.Image:
    """A picture over hidden white, transparent in its left half."""
    alpha = np.full((gray.height, gray.width), 255, np.uint8)
    alpha[:, : gray.width // 2] = 0
    hidden = np.where(alpha == 0, 255, np.asarray(gray)).astype(np.uint8)
    return Image.merge("LA", (Image.fromarray(hidden), Image.fromarray(alpha)))


def huge_exif(jpeg: bytes) -> bytes:
    """A JPEG file behind 40 segments of EXIF as long as they can be."""
    return jpeg[:2] + jpeg_segment(0xE1, b"Exif\0\0MM\0*" + bytes(65_000)) * 40 + jpeg[2:]


def write_corpus(folder: Path) -> int:
    """Write the whole corpus and return the number of files."""
    groups: dict[str, Callable[[], dict[str, Hostile]]] = {"archives": archives, "images": images}
    count = 0
    for group, make in groups.items():
        (folder / group).mkdir(parents=True, exist_ok=True)
        for name, hostile in make().items():
            (folder / group / (name if group == "images" else f"{name}.zip")).write_bytes(hostile.data)
            count += 1
    return count


if __name__ == "__main__":
    print(write_corpus(Path(sys.argv[1])), "files written")
