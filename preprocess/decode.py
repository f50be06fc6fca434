"""Compressed frame -> stored values, and the table that takes those to uint8.

Decoding goes through pydicom's decoders with the plugin always named, the fastest exact one first. One table per kind of
slice does rescale, window, rounding and inversion in a single exact pass over the stored values.
"""

import logging
from functools import lru_cache

import numpy as np
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder

from cache_schema.layout import HU_HIGH, HU_LOW
from preprocess.header import NATIVE_SYNTAXES, FileHeader

# pydicom logs tracebacks and text from headers; what matters of them becomes a finding
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)

PLUGINS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian), ("pydicom",)),
    **dict.fromkeys((uid.JPEGLossless, uid.JPEGLosslessSV1), ("turbo", "gdcm", "pylibjpeg")),
    **dict.fromkeys((uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit), ("gdcm", "pylibjpeg")),
    **dict.fromkeys((uid.JPEGLSLossless, uid.JPEGLSNearLossless), ("gdcm", "pylibjpeg")),
    **dict.fromkeys((uid.JPEG2000Lossless, uid.JPEG2000), ("pylibjpeg", "gdcm")),
    **dict.fromkeys((uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K), ("pylibjpeg",)),
    uid.RLELossless: ("pydicom",),
}
"""Transfer syntax -> pydicom's names of the decoders to try, in order. Uncompressed data knows only pydicom's own."""

LOSSY_SYNTAXES = frozenset(
    {uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless, uid.JPEG2000, uid.HTJ2K}
)


@lru_cache(32)
def decoder_names(syntax: str) -> tuple[str, ...]:
    """The installed decoders for a transfer syntax, best first; () where there is none."""
    if syntax not in PLUGINS:
        return ()
    if syntax in NATIVE_SYNTAXES:
        return PLUGINS[syntax]
    decoder = get_decoder(syntax)
    if "turbo" in PLUGINS[syntax] and "turbo" not in decoder.available_plugins:
        decoder.add_plugin("turbo", ("preprocess.turbo", "decode_frame"))
    return tuple(name for name in PLUGINS[syntax] if name in decoder.available_plugins)


@lru_cache(64)
def window_table(
    slope: float, intercept: float, pixel_representation: int, bits_stored: int, photometric: str
) -> np.ndarray:
    """Raw 16-bit word -> grey value, as (65536,) uint8.

    The word is masked to `bits_stored` bits and sign-extended where `pixel_representation` is 1, so that rubbish in
    unused bits does not matter. HU = stored * slope + intercept; u = round((clip(HU, -500, 1300) + 500) * 255 /
    1800), all in float64, halves to the even number. MONOCHROME1 gives 255 - u.
    """
    stored = np.arange(65536, dtype=np.int64) & ((1 << bits_stored) - 1)
    if pixel_representation:
        stored -= (stored >> (bits_stored - 1)) << bits_stored
    hu = stored.astype(np.float64) * slope + intercept
    grey = np.rint((np.clip(hu, HU_LOW, HU_HIGH) - HU_LOW) * 255 / (HU_HIGH - HU_LOW)).astype(np.uint8)
    table = 255 - grey if photometric == "MONOCHROME1" else grey
    table.flags.writeable = False
    return table


def decode_stored(frame: bytes | memoryview, header: FileHeader, plugin: str) -> np.ndarray:
    """Raw words of one frame as (rows, columns) uint8 or uint16, unused bits as they come. Raises whatever the
    decoder raises.

    `frame` is the compressed frame, or the bytes of an uncompressed one.
    """
    native = header.transfer_syntax in NATIVE_SYNTAXES
    decoder = get_decoder(header.transfer_syntax)
    source = frame if native else encapsulate([frame], has_bot=False)
    options = {
        "index": 0,
        "validate": False,
        "decoding_plugin": "" if native else plugin,
        "rows": header.rows,
        "columns": header.columns,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "bits_allocated": header.bits_allocated,
        "bits_stored": header.bits_stored,
        "pixel_representation": header.pixel_representation,
        "photometric_interpretation": header.photometric,
        "pixel_keyword": "PixelData",
        "pixel_vr": "OW",
    }
    if plugin == "turbo":  # as_array would copy the picture once more
        buffer, found = decoder.as_buffer(source, **options)
        sign = "ui"[header.pixel_representation]
        pixels = np.frombuffer(buffer, f"{sign}{found['bits_allocated'] // 8}").reshape(header.rows, header.columns)
        pixels = pixels.astype(f"{sign}{header.bits_allocated // 8}", copy=False)
    else:
        # the table corrects unused bits
        pixels, _ = decoder.as_array(source, raw=True, view_only=True, correct_unused_bits=False, **options)
    native_order = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    return native_order.view(np.uint8 if header.bits_allocated == 8 else np.uint16)
