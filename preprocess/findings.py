"""Findings about files and studies, the rows of report.csv, and the closed list of their reasons.

Nothing is dropped in silence: whatever is refused, repaired or merely odd becomes a `Finding`.
"""

from dataclasses import dataclass
from typing import Literal

from cache_schema.errors import CspineError, StudyRefused, reason_of

Severity = Literal["refused", "repaired", "flagged"]

REASONS: dict[str, str] = {
    # Refused: one file. The study it lies beside is kept and carries the flag `unread_files`.
    "not_dicom": "the file is not a DICOM file, or is truncated, and is of no other known kind",
    "archive": "the file is an archive; unpack it",
    "unlisted_folder": "the folder cannot be listed",
    "unreadable_file": "the file cannot be opened or read",
    "unreadable_header": "the header cannot be parsed",
    # Refused: the whole study, because one of its slices cannot be trusted.
    "no_readable_file": "none of the study's files could be read",
    "missing_field": "a field that pixels or geometry need is absent or empty",
    "invalid_field": "a field that pixels or geometry need does not hold a finite value in its range",
    "missing_rescale": "RescaleSlope or RescaleIntercept is absent, so stored values cannot be converted to HU",
    "no_pixel_data": "the file ends before its pixel data, or has none",
    "pixel_length": "the length of the pixel data does not match rows, columns, bits and frames",
    "pixels_too_many": "rows x columns exceeds the limit for decoding",
    "unsupported_pixels": "the pixels are not single grey samples of 8 or 16 bits",
    "high_bit": "HighBit is not BitsStored - 1",
    "unsupported_syntax": "no decoder for this transfer syntax",
    "invalid_id": "StudyInstanceUID is not a valid id: 1 to 64 letters, digits and single dots, not starting with a dot",
    "invalid_orientation": "ImageOrientationPatient is not two perpendicular unit vectors",
    "not_axial": "the slices are more than 30 degrees from axial",
    "no_axial_series": "none of the study's series is an axial CT volume",
    "mixed_orientation": "slices of one series have different orientations",
    "mixed_size": "slices of one series differ in rows or columns",
    "mixed_pixel_spacing": "slices of one series differ in pixel spacing",
    "two_patients": "the study holds images of two patients, by PatientID or by folders with different frames of reference",
    "two_volumes": "two volumes are interleaved, and no header field separates them",
    "too_many_repeats": "more than one slice in ten has the position of another slice and differs from it",
    "origin_jump": "the first pixels of the slices deviate from a straight line, so one grid may not fit; refused above one slice spacing",
    "not_hu": "the values are not Hounsfield units, by RescaleType or ImageType",
    "frame_header": "the compressed frame does not begin with a header of its transfer syntax",
    "frame_size": "the compressed frame's own header disagrees with Rows, Columns or one sample per pixel",
    "truncated_frame": "the compressed frame does not end with its end-of-image marker",
    "frame_precision": "a compressed frame has fewer bits than BitsStored, so the position of the sign bit is unclear",
    "offset_table": "the offset table of a multi-frame file does not follow the order of its frames",
    "decode_failed": "every decoder for the transfer syntax failed on a frame",
    "decoders_disagree": "two decoders give different pixels for the first slice of its kind",
    "source_changed": "a file changed between the header pass and the decoding",
    # Refused: a segmentation. Its study is kept, without slice boxes and vertebra ratios.
    "segmentation_unopened": "the segmentation's file cannot be opened or read",
    "segmentation_unreadable": "the segmentation is not a readable 3-dimensional NIfTI file",
    "segmentation_labels": "the segmentation holds values that are not labels",
    "segmentation_too_large": "the segmentation exceeds the limit for reading, or the available memory",
    "segmentation_empty": "the segmentation holds no voxel of C1 to C7 on the study's slices",
    "segmentation_geometry": "neither the segmentation's affine nor its shape fits the study's slices",
    "segmentation_one_level": "the segmentation has a single level, which is taller than a vertebra",
    "segmentation_upside_down": "the segmentation's levels do not run from C1 at the head to C7 at the feet",
    "segmentation_mirrored": "a mirror image of the segmentation would lie on brighter voxels than the segmentation itself",
    "segmentation_shifted": "moved by more than two voxels, the segmentation would lie on brighter voxels",
    # Repaired: the study is kept.
    "repeated_file": "exact copies of other images were left out",
    "repeated_position": "slices with the position of another slice that differ from it were left out",
    # Flagged: the study is kept as it is.
    "unread_files": "files beside the study's own could not be read; slices may be missing",
    "other_files": "files known not to be DICOM images were skipped",
    "patient_ids_differ": "the images have different PatientIDs, of which at most one occurs more than once",
    "series_uid_of_each": "every image has its own series UID; the images were read as one series",
    "single_slice": "the study has one slice only",
    "not_ct": "images, reports or other objects of another modality were left out",
    "series_left_out": "a series was left out because another series of the study is preferred",
    "file_order": "file names and positions order the slices differently",
    "gantry_tilt": "the slice normal is tilted against the patient's axis",
    "shear": "the first pixels of the slices lie on a line that is oblique to the slice normal",
    "uneven_spacing": "the distance between slices varies",
    "gaps": "slices seem to be missing: a distance between slices is at least about twice the usual one",
    "invalid_uid": "a UID does not follow DICOM's rules",
    "repeated_sop_uid": "slices at different positions carry the same SOP instance UID",
    "no_slice_number": "InstanceNumber is absent or repeated; the slices are numbered in the order of their files",
    "non_square": "pixels are not square",
    "monochrome1": "low stored values are white (MONOCHROME1); the image was inverted",
    "turned": "the image was turned or flipped so that rows run to the back and columns to the patient's left",
    "multi_frame": "several slices come from one file",
    "lossy": "the transfer syntax may have lost information",
    "unchecked_decoding": "only one decoder can read the first slice of its kind, so there is none to compare it with",
    "bits_beyond_stored": "bits are set beyond BitsStored: values wrap",
    "padding_in_window": "PixelPaddingValue is an HU inside the intensity window; padding at the edge of the frame was set to air",
    "hu_implausible": "the values do not look like Hounsfield units: no air, air at the top of the window, or wrapped values",
    "constant_slice": "slices hold a single value: nothing was scanned, or an image is lost",
    "slice_jump": "a slice differs strongly from both of its neighbours: its image may be damaged",
    "segmentation_by_fixed_flips": "the affine does not fit the slices; the competition's flips were applied",
    "segmentation_two_affines": "qform and sform disagree; the one whose labels lie on brighter voxels was used",
    "unused_mask": "the file looks like a segmentation but belongs to no study",
    # What only a build or a crop can tell.
    "failed": "the study ended in an error that no other reason covers",
    "worker_died": "a process died on the study, or hung and was ended, and so did a second one that worked on nothing else",
    "study_box_lost": "the study was replaced because its source changed, and lost its study_box; run set-boxes again",
    "no_box": "left out of a cropped cache: the study has no box to crop to",
    "labels_mismatch": "the CSVs of labels or folds and the source do not name the same studies",
    "not_in_source": "kept from an earlier build: the source no longer has a study of this id",
}

STUDY_KEPT = frozenset(
    {"not_dicom", "archive", "unlisted_folder", "unreadable_file", "unreadable_header"}
    | {name for name in REASONS if name.startswith("segmentation_")}
)
"""Reasons that refuse a file or a segmentation only, never the study."""

TRANSIENT_REASONS = frozenset(
    {
        *("failed", "worker_died", "source_changed", "study_box_lost"),
        *("unreadable_file", "unlisted_folder", "segmentation_unopened"),
    }
)
"""Reasons that may be gone at the next build though no file changed."""


@dataclass(frozen=True, order=True, slots=True)
class Finding:
    """One row of the report.

    id: the study, "" where no usable id is known. file: the file's number (1-based) among the study's sorted files,
    or among all files of the source where the study is unknown; "" where the finding is about the study. message: one
    line without text from a header. path: the file's path, for `--paths` only; it is never kept.
    """

    id: str
    file: str
    severity: Severity
    reason: str
    message: str
    path: str = ""

    def __post_init__(self) -> None:
        if self.reason not in REASONS:
            raise ValueError(f"{self.reason!r} is not one of the reasons in preprocess.findings.REASONS")

    @classmethod
    def of_error(cls, id: str, error: Exception) -> "Finding":
        """A study that ended in this error. The message shows no path and no text of the source."""
        if isinstance(error, StudyRefused):
            return cls(id, error.file or "", "refused", error.reason, error.what)
        if isinstance(error, CspineError):
            return cls.of_study(id, "refused", "failed", error.what)
        why = reason_of(error) if isinstance(error, OSError) else type(error).__name__
        return cls.of_study(id, "refused", "failed", f"{REASONS['failed']} ({why})")

    @classmethod
    def of_study(cls, id: str, severity: Severity, reason: str, message: str | None = None) -> "Finding":
        """A finding about a whole study. Its message is that of the reason unless one is given."""
        return cls(id, "", severity, reason, message or REASONS[reason])

    @property
    def refuses_study(self) -> bool:
        """True where the study itself is refused, not just one of its files or its segmentation."""
        return self.severity == "refused" and self.reason not in STUDY_KEPT
