"""The four networks: each a backbone, and a sequence part that can run on features computed before."""

from trainer.models.backbone import Backbone, backbone_weights, load_strictly
from trainer.models.bbox import BoxModel
from trainer.models.slice_fracture import SliceFractureModel
from trainer.models.study_fracture import StudyFractureModel
from trainer.models.vertebrae import VertebraModel

__all__ = [
    "Backbone",
    "BoxModel",
    "SliceFractureModel",
    "StudyFractureModel",
    "VertebraModel",
    "backbone_weights",
    "load_strictly",
]
