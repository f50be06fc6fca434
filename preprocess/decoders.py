"""Transfer syntaxes that can be read, and the decoders for each, best first."""

from functools import lru_cache

from pydicom import uid
from pydicom.pixels import get_decoder

NATIVE_SYNTAXES = frozenset({uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian})
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
        decoder.add_plugin("turbo", ("preprocess.pixels.libjpeg_turbo_plugin", "decode_frame"))
    return tuple(name for name in PLUGINS[syntax] if name in decoder.available_plugins)
