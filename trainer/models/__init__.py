"""The four networks. Each is a backbone and a head that also accepts precomputed features."""

from trainer.models.backbone import Backbone, Network, backbone_weights, load_strictly
from trainer.models.bbox import BoxModel
from trainer.models.slice_fracture import SliceFractureModel
from trainer.models.study_fracture import StudyFractureModel
from trainer.models.vertebrae import VertebraModel

__all__ = [
    "Backbone",
    "BoxModel",
    "Network",
    "SliceFractureModel",
    "StudyFractureModel",
    "VertebraModel",
    "backbone_weights",
    "load_strictly",
]
