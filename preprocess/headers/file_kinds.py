"""The kind of a file without a DICOM preamble, by its first bytes and never by its name."""

import re
import zlib

NIFTI = "NIfTI volumes"
APPLE_DOUBLE = "AppleDouble files"
ZIP = "zip"
_PREFIXES: dict[str, tuple[bytes, ...]] = {
    "images": (
        *(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\x01\0", b"\0\0\x02\0"),
        *(b"8BPS", b"\0\0\0\x0cjP  ", b"\xd7\xcd\xc6\x9a"),
    ),
    "documents": (b"%PDF", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"ITSF", b"?_\x03\0"),
    "tables": (b"PAR1", b"\x93NUMPY", b"\x89HDF\r\n\x1a\n"),
    "databases": (b"SQLite format 3\0", b"\0\x01\0\0Standard ", b"\0\0\0\x01Bud1"),
    "programs": (
        *(b"\x7fELF", b"MZ", b"\xca\xfe\xba\xbe", b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe", b"MSCF", b"ISc("),
        *(b"L\0\0\0\x01\x14\x02\0", b"FWS", b"CWS"),
    ),
    "fonts": (b"\0\x01\0\0\0", b"OTTO", b"ttcf", b"wOFF", b"wOF2"),
    "sound and video": (b"RIFF", b"ID3", b"OggS", b"fLaC", b"\0\0\x01\xba", b"\0\0\x01\xb3", b"0&\xb2u\x8ef\xcf\x11"),
    "volumes of other formats": (b"NRRD000",),
    APPLE_DOUBLE: (b"\0\x05\x16\x07", b"\0\x05\x16\0"),
}
_ZIPPED = {
    "tables": (b"[Content_Types].xml", b"_rels/", b"xl/", b"word/", b"ppt/", b"docProps/"),
    "documents": (b"mimetype",),
    "programs": (b"META-INF/",),
}
"""first names within documents and programs that are zip archives"""

_ARCHIVES: dict[str, bytes | tuple[bytes, ...]] = {
    "gzip": b"\x1f\x8b",
    ZIP: (b"PK\x03\x04", b"PK\x05\x06"),  # the second: an empty one
    "bzip2": b"BZh",
    "xz": b"\xfd7zXZ\0",
    "7-Zip": b"7z\xbc\xaf\x27\x1c",
    "rar": b"Rar!\x1a\x07",
    "Zstandard": b"\x28\xb5\x2f\xfd",
    "LZ4": b"\x04\x22\x4d\x18",
    "compress": b"\x1f\x9d",
}
_TEXT_BYTES = 4096
_NOT_TEXT = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BARE_LITTLE = re.compile(rb"[\x02\x08]\0[\0-\x3f]\0([A-Z]{2}|..\0\0)", re.DOTALL)
_BARE_BIG = re.compile(rb"\0\x08\0[\0-\x3f][A-Z]{2}", re.DOTALL)


def is_bare_dicom(head: bytes) -> bool:
    """Whether a file without preamble begins with an element of group 0002 or 0008, as DICOM data sets do."""
    return bool(_BARE_LITTLE.match(head) or _BARE_BIG.match(head))


def archive_kind(head: bytes) -> str | None:
    """The name of an archive format, None for everything else."""
    if head[257:262] == b"ustar":
        return "tar"
    return next((name for name, prefix in _ARCHIVES.items() if head.startswith(prefix)), None)


def other_kind(head: bytes) -> str | None:
    """In a few words and the plural, what a file is that is known to be no DICOM; None where that is not known.

    head: the first bytes of a file, 512 at least where it has so many.
    """
    for kind, prefixes in _PREFIXES.items():
        if head.startswith(prefixes):
            return kind
    if head.startswith(b"PK\x03\x04"):
        return next((kind for kind, names in _ZIPPED.items() if head[30:].startswith(names)), None)
    if _is_nifti(head):
        return NIFTI
    if head[4:8] == b"ftyp":
        return "sound and video"
    if head.startswith(b"BM") and head[6:10] == b"\0\0\0\0":
        return "images"
    return "text files" if _is_text(head) else None


def _is_nifti(head: bytes) -> bool:
    if head.startswith(_ARCHIVES["gzip"]):
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, 352)
        except zlib.error:
            return False
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] == b"n+2\0"


def _is_text(head: bytes) -> bool:
    sample = head[:_TEXT_BYTES]
    if sample.startswith(_UTF16):
        return True
    return bool(sample) and not _NOT_TEXT.search(sample)
