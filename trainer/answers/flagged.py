"""All that a reader of an answer should know, from its curves, its box and the image."""

from dataclasses import replace

from cache_schema import Study
from trainer.answers.anatomy import LevelsFound, box_flags, check_levels
from trainer.answers.answer import Answer, Flag
from trainer.answers.flags import REASONS
from trainer.answers.unlike import TrainingRange, image_statistics


def flagged(study: Study, answer: Answer, trained_on: TrainingRange, levels_found: LevelsFound | None) -> Answer:
    """The answer with its flags, and the levels outside the field of view.

    levels_found: of the slice models. Those that do not find levels in most studies that they hold out cannot check any.
    """
    outside: dict[str, str] = {}
    flags = [Flag("unlike_training", line) for line in trained_on.unlike(image_statistics(study))]
    flags += box_flags(answer.box, answer.box_source, answer.record)
    if answer.curves is None:
        flags.append(Flag("no_slice_model", REASONS["no_slice_model"]))
    elif levels_found is not None and not levels_found.in_most:
        line = f"the slice models find C1 to C7 in {levels_found.found} of {levels_found.studies} held-out studies"
        flags.append(Flag("weak_slice_model", f"{line}: levels are not checked"))
    else:
        found, outside = check_levels(answer.curves, answer.z, answer.z_range, answer.box_source)
        flags += found
    return replace(answer, flags=tuple(flags), outside=outside)
