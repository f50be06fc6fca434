"""All that a reader of an answer should know, from its curves, its box and the image."""

from dataclasses import replace

from cache_schema import Study
from cache_schema.columns import FULL_FRAME
from trainer.answers.anatomy import check_levels
from trainer.answers.answer import Answer, Flag
from trainer.answers.flags import REASONS
from trainer.answers.unlike import TrainingRange, image_statistics


def flagged(study: Study, answer: Answer, trained_on: TrainingRange) -> Answer:
    """The answer with its flags, and the levels outside the field of view."""
    outside: dict[str, str] = {}
    flags = [Flag("unlike_training", line) for line in trained_on.unlike(image_statistics(study))]
    if answer.curves is None:
        flags.append(Flag("no_slice_model", REASONS["no_slice_model"]))
        if answer.box_source == FULL_FRAME:
            flags.append(Flag("no_box", REASONS["no_box"]))
    else:
        place = answer.box, answer.z_range, answer.box_source, answer.record
        found, outside = check_levels(answer.curves, answer.z, *place)
        flags += found
    return replace(answer, flags=tuple(flags), outside=outside)
