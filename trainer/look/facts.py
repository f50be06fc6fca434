"""What contact sheets and curves must know of a stage by its name."""

from typing import NamedTuple


class Facts(NamedTuple):
    items: str
    """triplets, windows (of slices) or studies"""
    legend: str
    """what its targets look like in a contact sheet"""
    learns_from: str
    """segmentations, pseudo_labels or labels"""


FACTS = {
    "bbox": Facts(
        "triplets",
        "yellow: the target box, moved as the image was; it is the union over the three slices",
        "segmentations",
    ),
    "vertebrae": Facts("windows", "bars: target ratios of C1..C7 at the slice shown", "segmentations"),
    "slice_fracture": Facts(
        "windows",
        "grey bars: target ratios of C1..C7 at the slice shown; red: target fractures; ?: unknown, not trained on",
        "pseudo_labels",
    ),
    "study_fracture": Facts("studies", "labels of the study: red 1, grey 0, ?: unknown, not trained on", "labels"),
}
