"""Studies of a cache as another build would give them."""

import numpy as np

from cache_schema import Study


class Inverted:
    """A study's pixels, white for black."""

    def __init__(self, study: Study):
        self.study = study

    def read(self, z0, z1, box=None):
        return 255 - self.study.pixels.read(z0, z1, box)


def other_pixels(study: Study) -> Study:
    labels = {"slice_box": study.slice_box, "vertebra_ratio": study.vertebra_ratio}
    record = study.record.model_copy(update={"content_digest": None})
    return Study(record, study.z, study.slice_number, Inverted(study), **labels)


def other_segmentation(study: Study) -> Study:
    record = study.record.model_copy(update={"segmentation_digest": None})
    boxes = np.where(study.slice_box >= 0, study.slice_box + 1, -1)
    return Study(record, study.z, study.slice_number, study.pixels, boxes, study.vertebra_ratio)
