"""The four stages by name."""

from trainer.stages.base import Stage
from trainer.stages.bbox import BoxStage
from trainer.stages.slice_fracture import SliceFractureStage
from trainer.stages.study_fracture import StudyFractureStage
from trainer.stages.vertebrae import VertebraStage

STAGES: dict[str, type[Stage]] = {
    "bbox": BoxStage,
    "vertebrae": VertebraStage,
    "slice_fracture": SliceFractureStage,
    "study_fracture": StudyFractureStage,
}
