"""How a result gets into its study: the source's patient and study attributes, this software's name, and no clock."""

from importlib.metadata import version
from typing import Any

from pydicom.dataset import Dataset

from preprocess.results.source_image import SourceImage

VERSION = version("cspine")
MAKER: dict[str, Any] = {
    "manufacturer": "cspine",
    "manufacturer_model_name": "cspine",
    "software_versions": VERSION,
}
CLOCK = (
    *("InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime"),
    *("DateOfSecondaryCapture", "TimeOfSecondaryCapture", "ContributionDateTime"),
)
"""attributes of type 3 (or 2C that does not apply) that highdicom fills with the time of day"""


def file_under(result: Dataset, source: SourceImage) -> Dataset:
    """`result` with the attributes by which an archive files the study, and without CLOCK."""
    for part in (result, *result.get("ContributingEquipmentSequence", [])):  # highdicom names itself there
        for keyword in CLOCK:
            part.pop(keyword, None)
    result.update(source.filed_by)
    return result
