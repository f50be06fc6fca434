"""Compressed frame -> stored values, through pydicom's decoders: the plugin is always named, the fastest exact one first."""

from typing import Any

import numpy as np
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder

from cache_schema.errors import StudyRefused
from preprocess.decoders import NATIVE_SYNTAXES
from preprocess.headers.file_header import FileHeader
from preprocess.pixels.codestream import jpeg_precision


def decode_stored(frame: bytes | memoryview, header: FileHeader, plugin: str) -> np.ndarray:
    """Raw words of one frame as (rows, columns) uint8 or uint16, unused bits as they come. Raises whatever the
    decoder raises.

    `frame` is the compressed frame, or the bytes of an uncompressed one. Samples of JPEG frames are unsigned words of the
    frame's own precision, whatever decoders make of the header's sign: which bit is the sign the header alone says.
    """
    native = header.transfer_syntax in NATIVE_SYNTAXES
    precision = None if native else jpeg_precision(bytes(frame), header.transfer_syntax)
    decoder = get_decoder(header.transfer_syntax)
    source = frame if native else encapsulate([bytes(frame)], has_bot=False)
    options: dict[str, Any] = {
        "index": 0,
        "validate": False,
        "decoding_plugin": "" if native else plugin,
        "rows": header.rows,
        "columns": header.columns,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "bits_allocated": header.bits_allocated,
        "bits_stored": header.bits_stored if precision is None else precision,
        "pixel_representation": header.pixel_representation if precision is None else 0,
        "photometric_interpretation": header.photometric,
        "pixel_keyword": "PixelData",
        "pixel_vr": header.pixel_vr if native else "OW",
    }
    if precision is not None and precision <= 8:
        options["bits_allocated"] = 8
    if plugin == "turbo":  # as_array would copy the image once more
        buffer, found = decoder.as_buffer(source, **options)
        pixels = np.frombuffer(buffer, f"u{int(found['bits_allocated']) // 8}").reshape(header.rows, header.columns)
    else:
        # the table corrects unused bits
        options |= {"raw": True, "view_only": True, "correct_unused_bits": False}
        pixels, _ = decoder.as_array(source, **options)
    if precision is not None:
        pixels = pixels.astype(f"u{header.bits_allocated // 8}", copy=False)
    native_order = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    return native_order.view(np.uint8 if header.bits_allocated == 8 else np.uint16)


def check_sign(words: np.ndarray, frame: bytes | memoryview, header: FileHeader) -> None:
    """Raise StudyRefused where signed values come in a JPEG frame of fewer bits than BitsStored, and some of them are
    negative or not depending on which of the two is believed. Frames of 8 bits are what encoders make of values from 0 to
    255."""
    if not header.pixel_representation or header.transfer_syntax in NATIVE_SYNTAXES:
        return
    precision = jpeg_precision(bytes(frame), header.transfer_syntax)
    if precision is not None and 8 < precision < header.bits_stored and int(words.max()) >> (precision - 1):
        message = f"a compressed frame has {precision} bits, its DICOM header {header.bits_stored}: the position of the sign bit is unclear"
        raise StudyRefused("frame_precision", message)
