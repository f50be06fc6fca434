"""What is said about files and studies that are not simply fine: a closed list of reasons, and the row that carries
one.

Nothing is dropped in silence: whatever is refused, repaired or merely odd becomes a `Finding`, and the report is made
of them.
"""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["refused", "repaired", "flagged"]

REASONS: dict[str, str] = {
    # Refused: one file. The study it lies beside is kept and carries the flag `unread_files`.
    "not_dicom": "the file is named .dcm but is no DICOM file",
    "unreadable_file": "the file cannot be opened or read",
    "unreadable_header": "the header cannot be parsed",
    # Refused: the whole study, because one of its slices cannot be trusted.
    "no_readable_file": "none of the study's files could be read",
    "missing_field": "a field that pixels or geometry need is absent or empty",
    "invalid_field": "a field that pixels or geometry need holds something else than a finite value in its range",
    "missing_rescale": "RescaleSlope or RescaleIntercept is absent, so that stored values cannot be turned into HU",
    "no_pixel_data": "the file ends before its pixel data, or has none",
    "pixel_length": "the length of the pixel data is not what rows, columns, bits and frames ask for",
    "pixels_too_many": "rows x columns is beyond the cap on what is decoded",
    "unsupported_pixels": "not one grey sample per pixel in 8 or 16 bits",
    "high_bit": "HighBit is not BitsStored - 1",
    "unsupported_syntax": "no decoder for this transfer syntax",
    "invalid_id": "StudyInstanceUID is no id: 1 to 64 letters, digits and single dots, the first no dot",
    "invalid_orientation": "ImageOrientationPatient is not two perpendicular unit vectors",
    "not_axial": "the slices are more than 30 degrees from axial",
    "no_axial_series": "none of the study's series is an axial CT volume",
    "mixed_orientation": "slices of one series have different orientations",
    "mixed_size": "slices of one series differ in rows or columns",
    "mixed_pixel_spacing": "slices of one series differ in pixel spacing",
    "frame_header": "the compressed frame does not begin with a header of its transfer syntax",
    "frame_size": "the compressed frame's own header disagrees with Rows, Columns or one sample per pixel",
    "truncated_frame": "the compressed frame does not end with its end-of-image marker",
    "decode_failed": "every decoder for the transfer syntax failed on a frame",
    "decoders_disagree": "two decoders give different pixels for the first slice of its kind",
    "source_changed": "a file changed between the header pass and the decoding",
    # Refused: a segmentation. Its study is kept, without slice boxes and vertebra ratios.
    "segmentation_unreadable": "the segmentation is not a readable 3-dimensional NIfTI file",
    "segmentation_labels": "the segmentation holds values that are no labels",
    "segmentation_empty": "the segmentation holds no voxel of C1 to C7 on the study's slices",
    "segmentation_geometry": "neither the segmentation's affine nor its shape fits the study's slices",
    "segmentation_upside_down": "the segmentation's levels do not run from C1 at the head to C7 at the feet",
    "segmentation_mirrored": "a mirrored segmentation would lie on brighter voxels than the segmentation itself",
    # Repaired: the study is kept.
    "repeated_file": "a copy of a slice that is already there (same SOP instance UID and place) was left out",
    "repeated_position": "a second slice at the same position was left out",
    # Flagged: the study is kept as it is.
    "unread_files": "files beside the study's own could not be read; slices may be missing",
    "not_ct": "images, reports or others of another modality were left out",
    "series_left_out": "a series was left out because another one of the study serves better",
    "file_order": "file names and positions order the slices differently",
    "gantry_tilt": "the slice normal is tilted against the patient's axis",
    "uneven_spacing": "the distance between slices varies",
    "gaps": "slices are missing: a distance is about twice the usual one or more",
    "invalid_uid": "a UID does not follow DICOM's rules",
    "repeated_sop_uid": "slices at different positions carry the same SOP instance UID",
    "no_slice_number": "InstanceNumber is absent or repeated; the slices are numbered in the order of their files",
    "non_square": "pixels are not square",
    "monochrome1": "stored values run from white to black; inverted",
    "turned": "the picture was turned or flipped so that rows run to the back and columns to the patient's left",
    "multi_frame": "several slices come from one file",
    "lossy": "the transfer syntax may have lost information",
    "unchecked_decoding": "only one decoder can read the first slice of its kind: there is none to compare it with",
    "constant_slice": "slices hold one single value: nothing was scanned, or a picture is lost",
    "slice_jump": "a slice is unlike both of its neighbours: its picture may be damaged",
    "segmentation_by_fixed_flips": "the affine does not fit the slices; the competition's flips were applied",
}

STUDY_KEPT = frozenset(
    {"not_dicom", "unreadable_file", "unreadable_header"}
    | {name for name in REASONS if name.startswith("segmentation_")}
)
"""Reasons that refuse a file or a segmentation only, never the study."""


@dataclass(frozen=True, order=True)
class Finding:
    """One row of the report.

    id: the study, "" where no usable id is known. file: the file's number (1-based) among the study's sorted files,
    or among all files of the source where the study is unknown; "" where the finding is about the study. message: one
    line without text from a header. path: the file's path, for `--paths` only.
    """

    id: str
    file: str
    severity: Severity
    reason: str
    message: str
    path: str = ""

    def __post_init__(self):
        if self.reason not in REASONS:
            raise ValueError(f"{self.reason!r} is not one of the reasons in preprocess.findings.REASONS")

    @property
    def refuses_study(self) -> bool:
        """True where the study itself is refused, not just one of its files or its segmentation."""
        return self.severity == "refused" and self.reason not in STUDY_KEPT
