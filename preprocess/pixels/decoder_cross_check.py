"""The first slice of each kind in a study is decoded twice, by two decoders that share as little code as possible."""

from collections.abc import Callable
from functools import partial

import imagecodecs
import numpy as np
from pydicom import uid

from cache_schema.errors import StudyRefused
from preprocess.decoders import LOSSY_SYNTAXES, NATIVE_SYNTAXES, decoder_names
from preprocess.findings import REASONS, Finding
from preprocess.headers.file_header import FileHeader
from preprocess.pixels.codestream import check_frame
from preprocess.pixels.decode import decode_stored
from preprocess.pixels.grey_tables import stored_values
from preprocess.pixels.study_pixels import DicomPixels
from preprocess.series.study_plan import SlicePlan, StudyPlan

LOSSY_TOLERANCE = 2
"""stored values: exact decoders of one lossy frame may round its inverse transform differently"""

Decode = Callable[[bytes | memoryview, FileHeader], np.ndarray]


def first_of_each_kind(plan: StudyPlan) -> list[SlicePlan]:
    """The first slice of each (transfer syntax, bits, sign, manufacturer) in cache order."""
    kinds: dict[tuple, SlicePlan] = {}
    for place in plan.slices:
        h = place.header
        kind = (h.transfer_syntax, h.bits_allocated, h.bits_stored, h.pixel_representation, h.manufacturer)
        kinds.setdefault(kind, place)
    return list(kinds.values())


def check_decoders(pixels: DicomPixels) -> list[Finding]:
    """Compare two decoders on the first slice of each kind in a study.

    A slice that no decoder reads is left to the reading itself, which refuses it. Raises StudyRefused where two
    decoders disagree; a slice that only one of them can read is a finding.
    """
    findings = []
    for place in first_of_each_kind(pixels.plan):
        try:
            frame = bytes(pixels.frame(place.header))
            agree = decoders_agree(frame, place.header)
        except StudyRefused as refused:
            raise StudyRefused(refused.reason, refused.what, study=pixels.plan.id, file=str(place.file)) from None
        if agree is None:
            reason = "unchecked_decoding"
            findings.append(Finding(pixels.plan.id, str(place.file), "flagged", reason, REASONS[reason], place.path))
        elif not agree:
            message = "two decoders give different pixels for the first slice of its kind"
            raise StudyRefused("decoders_disagree", message, study=pixels.plan.id, file=str(place.file))
    return findings


def decoders_agree(frame: bytes, header: FileHeader) -> bool | None:
    """Whether the first and the last decoder that can read the frame agree; None where fewer than two can."""
    if header.transfer_syntax not in NATIVE_SYNTAXES:
        check_frame(frame, header.transfer_syntax, header.rows, header.columns, header.bits_allocated)
    decoders = _decoders(header.transfer_syntax)
    # gdcm and libjpeg-turbo have one ancestor: they agree even on broken frames, from which pylibjpeg differs
    first, last = _first_of(decoders, frame, header), _first_of(decoders[::-1], frame, header)
    if first is None or last is None or first[0] is last[0]:
        return None
    (_, one), (_, other) = first, last
    tolerance = LOSSY_TOLERANCE if header.transfer_syntax in LOSSY_SYNTAXES else 0
    return int(np.abs(one - other).max()) <= tolerance


def _first_of(decoders: list[Decode], frame: bytes, header: FileHeader) -> tuple[Decode, np.ndarray] | None:
    """The first decoder that reads the frame, and the values it gives."""
    for decode in decoders:
        try:
            return decode, stored_values(header.pixel_representation, header.bits_stored)[decode(frame, header)]
        except Exception:  # decoders fail in every way there is
            continue
    return None


def _decoders(syntax: str) -> list[Decode]:
    """Best first."""
    named: list[Decode] = [partial(decode_stored, plugin=name) for name in decoder_names(syntax)]
    if syntax in NATIVE_SYNTAXES:
        return [*named, _decode_native]
    return [*named, _decode_rle] if syntax == uid.RLELossless else named


def _decode_native(frame: bytes | memoryview, header: FileHeader) -> np.ndarray:
    big = header.transfer_syntax == uid.ExplicitVRBigEndian
    size = header.rows * header.columns
    if big and header.bits_allocated == 8 and header.pixel_vr == "OW":  # two pixels a word, the second one first
        even = np.frombuffer(bytes(frame).ljust(size + size % 2, b"\0"), np.uint8)
        return even.reshape(-1, 2)[:, ::-1].ravel()[:size].reshape(header.rows, header.columns)
    words = np.frombuffer(frame, f"{'>' if big else '<'}u{header.bits_allocated // 8}", size)
    return words.reshape(header.rows, header.columns)


def _decode_rle(frame: bytes | memoryview, header: FileHeader) -> np.ndarray:
    """One packed segment a byte of a pixel, the most significant first (DICOM PS3.5 G.2)."""
    size = header.rows * header.columns
    count, *offsets = np.frombuffer(frame, "<u4", 16).tolist()
    ends = [*offsets[1:count], len(frame)]
    words: np.ndarray = np.zeros(size, np.uint16)
    for start, end in zip(offsets, ends, strict=False):
        unpacked = np.frombuffer(imagecodecs.packbits_decode(bytes(frame[start:end])), np.uint8)
        words = (words << 8) | unpacked[:size]
    return words.reshape(header.rows, header.columns)
