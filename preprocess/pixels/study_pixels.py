"""The pixels of one planned study: its files, read and decoded slice by slice, as uint8 in cache order.

Guards look at a frame's own bytes before any decoder does, since decoders believe what a broken frame says.
"""

import hashlib
import io
from contextlib import AbstractContextManager
from dataclasses import dataclass

import cv2
import google_crc32c
import numpy as np

from cache_schema.arrays import Scratch
from cache_schema.errors import StudyRefused
from preprocess.decoders import NATIVE_SYNTAXES, decoder_names
from preprocess.findings import REASONS, Finding
from preprocess.headers.file_header import FileHeader
from preprocess.headers.frames import file_checksum, frame_bytes, frame_in, unchanged, unchanged_in_turn
from preprocess.pixels.codestream import check_frame
from preprocess.pixels.decode import check_sign, decode_stored
from preprocess.pixels.grey_tables import AIR, WordTables, padding_at_the_edge, tables_of
from preprocess.pixels.plausibility import Sample, sample_of, why_implausible
from preprocess.pixels.slice_continuity import jumps, thumbnail
from preprocess.series.study_plan import StudyPlan
from preprocess.warnings_off import warnings_off

LEAST_OF_A_KIND = 6
"""slices of one rescaling that show air and tissue by themselves"""

_content, _image = Scratch(), Scratch()


MESSAGES = {
    "constant_slice": "{} slices hold a single value: nothing was scanned, or an image is lost",
    "bits_beyond_stored": "{} slices have bits set beyond BitsStored; these bits are ignored, so such values wrap",
    "padding_in_window": "PixelPaddingValue is an HU inside the intensity window; set to air at the frame's edge in {} slices",
}
"""findings about single slices, told once for a study with the number of slices"""


@dataclass(frozen=True)
class _Seen:
    """What reading one slice showed. reasons: those of MESSAGES that hold."""

    sample: Sample
    reasons: frozenset[str]


class DicomPixels:
    """The pixels of a planned study, decoded as they are read. Picklable; holds no file open between reads."""

    def __init__(self, plan: StudyPlan):
        self.plan = plan
        self._checksums: dict[str, int] = {}
        self._used: dict[str, set[str]] = {}
        self._seen: dict[int, _Seen] = {}
        self._thumbnails: dict[int, np.ndarray] = {}

    def read(self, z0: int, z1: int, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """Slices z0 (included) to z1 (excluded) of the canonical study as uint8 (z1 - z0, rows, columns), or their
        `box` x0 y0 x1 y1.

        Raises StudyRefused when a file changed since it was planned, or a frame cannot be trusted or decoded.
        """
        x0, y0, x1, y1 = (0, 0, self.plan.columns, self.plan.rows) if box is None else box
        slices = self.plan.slices[z0:z1]
        out = np.empty((len(slices), y1 - y0, x1 - x0), np.uint8)
        with warnings_off():
            files = unchanged_in_turn([place.header for place in slices])
            for z, (image, place, file) in enumerate(zip(out, slices, files, strict=True), start=z0):
                try:
                    grey = self._grey(z, place.header, file)
                except StudyRefused as refused:
                    raise StudyRefused(refused.reason, refused.what, study=self.plan.id, file=str(place.file)) from None
                turned = self.plan.turn.apply(grey)
                image[...] = turned[y0:y1, x0:x1]
                self._thumbnails[z] = thumbnail(turned)
        return out

    def _grey(self, z: int, header: FileHeader, file: AbstractContextManager[io.FileIO]) -> np.ndarray:
        """One slice as stored, (rows, columns) uint8; valid until the next call in this thread."""
        stored, tables = self.stored(header, file), tables_of(header)
        padding = padding_at_the_edge(stored, tables)
        shown = {
            "constant_slice": _is_constant(stored),
            "bits_beyond_stored": has_bits_beyond(stored, header, tables),
            "padding_in_window": padding is not None,
        }
        reasons = frozenset(reason for reason, holds in shown.items() if holds)
        self._seen[z] = _Seen(sample_of(stored, tables), reasons)
        table = tables.grey if stored.dtype == np.uint16 else tables.grey[:256]
        grey = cv2.LUT(stored, table[None], _image(*stored.shape))
        if padding is not None:
            grey[padding] = AIR
        return grey

    def stored(self, header: FileHeader, file: AbstractContextManager[io.FileIO] | None = None) -> np.ndarray:
        """Stored words of one slice, uint8 or uint16 (rows, columns), unused bits as they come. Raises StudyRefused.

        file: its file, where it has been asked for already.
        """
        frame = self.frame(header, file)
        if header.transfer_syntax not in NATIVE_SYNTAXES:
            check_frame(bytes(frame), header.transfer_syntax, header.rows, header.columns, header.bits_allocated)
        failures = []
        for name in decoder_names(header.transfer_syntax):
            try:
                stored = decode_stored(frame, header, name)
            except Exception as error:  # decoders fail in every way there is
                failures.append(f"{name} ({type(error).__name__})")
            else:
                check_sign(stored, frame, header)
                self._used.setdefault(header.transfer_syntax, set()).add(name)
                return stored
        raise StudyRefused("decode_failed", f"decoding failed with {', '.join(failures)}")

    def frame(self, header: FileHeader, file: AbstractContextManager[io.FileIO] | None = None) -> bytes | memoryview:
        """The bytes of one frame, valid until the next call in this thread. file: as for `stored`.

        A file of one frame is read whole, so that its checksum costs no second read.
        """
        with file or unchanged(header) as opened:
            if header.frames > 1:
                return frame_in(opened, header)
            content = _content(header.size)
            if opened.readinto(content.data) != header.size:
                raise StudyRefused("source_changed", "a file became shorter while it was read")
        self._checksums[header.path] = google_crc32c.value(content)
        if header.transfer_syntax in NATIVE_SYNTAXES:
            return content.data[header.pixel_offset : header.pixel_offset + frame_bytes(header)]
        return frame_in(io.BytesIO(content.data), header)

    @property
    def decoder(self) -> str:
        """Names of the decoders used so far, or to be used where nothing has been read yet, joined by commas."""
        syntaxes = {place.header.transfer_syntax for place in self.plan.slices}
        names = {name for syntax in syntaxes for name in self._used.get(syntax) or decoder_names(syntax)[:1]}
        return ",".join(sorted(names))

    def findings(self) -> list[Finding]:
        """What the slices read so far show."""
        found = []
        for reason, message in MESSAGES.items():
            if count := sum(reason in seen.reasons for seen in self._seen.values()):
                found.append(Finding.of_study(self.plan.id, "flagged", reason, message.format(count)))
        if implausible := self._why_implausible():
            message = f"the values do not look like HU: {implausible}"
            found.append(Finding.of_study(self.plan.id, "flagged", "hu_implausible", message))
        for z in jumps(self._thumbnails):
            if "constant_slice" not in self._seen[z].reasons:
                place, reason = self.plan.slices[z], "slice_jump"
                found.append(Finding(self.plan.id, str(place.file), "flagged", reason, REASONS[reason], place.path))
        return found

    def _why_implausible(self) -> str | None:
        """Of all slices, or of those that share a rescaling where they are several."""
        kinds: dict[tuple, list[Sample]] = {}
        for z, seen in self._seen.items():
            header = self.plan.slices[z].header
            kinds.setdefault((header.slope, header.intercept, header.pixel_representation), []).append(seen.sample)
        several = [samples for samples in kinds.values() if len(samples) >= LEAST_OF_A_KIND]
        everything = [seen.sample for seen in self._seen.values()]
        return next(filter(None, map(why_implausible, [everything, *several])), None)

    def flags(self) -> tuple[str, ...]:
        """The flags that go with `findings`."""
        return tuple(sorted({finding.reason for finding in self.findings()}))

    def source_digest(self) -> str:
        """Digest of the bytes of the source files in slice order, without their names; reads the files that `read`
        has not seen whole.

        Raises StudyRefused when a file changed since it was planned.
        """
        digest = hashlib.sha256()
        for number, header in {place.path: (place.file, place.header) for place in self.plan.slices}.values():
            if header.path not in self._checksums:
                try:
                    self._checksums[header.path] = file_checksum(header)
                except StudyRefused as refused:
                    raise StudyRefused(refused.reason, refused.what, study=self.plan.id, file=str(number)) from None
            digest.update(f"{header.size} {self._checksums[header.path]:08x}\n".encode())
        return digest.hexdigest()


def _is_constant(stored: np.ndarray) -> bool:
    middle = stored[len(stored) // 2]  # tells of nearly every slice that it is not
    return bool((middle == middle[0]).all()) and bool((stored == middle[0]).all())


def has_bits_beyond(stored: np.ndarray, header: FileHeader, tables: WordTables) -> bool:
    """Whether bits beyond BitsStored are set that are not its sign's; padding may have them."""
    if header.bits_stored == header.bits_allocated or not _goes_beyond(stored, header):
        return False
    return tables.padding is None or _goes_beyond(stored[~tables.padding[stored]], header)


def _goes_beyond(stored: np.ndarray, header: FileHeader) -> bool:
    limit = 1 << header.bits_stored
    if not stored.size or int(stored.max()) < limit:
        return False
    if not header.pixel_representation:
        return True
    signed = stored.view(np.dtype(f"i{stored.itemsize}"))
    return int(signed.min()) < -limit // 2 or int(signed.max()) >= limit // 2
