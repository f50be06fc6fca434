"""The closed list of reasons why an answer is flagged."""

REASONS = {
    "levels_out_of_order": "C1 to C7 do not follow each other from head to feet",
    "level_missing": "a level is not found where the field of view has room for it",
    "level_twice": "a level is found at two places",
    "gap": "slices between two levels belong to neither",
    "cut_end": "the field of view ends within the cervical spine, or may do so",
    "outside_field": "the level lies outside the field of view and gets no probability",
    "no_box": "no box was found: the models saw the full frame",
    "box_at_frame": "the box touches the edge of the image",
    "outside_box": "a level is found in slices outside the box: the study models did not see it",
    "unlike_training": "the image is far from all that the models were trained on",
    "weak_slice_model": "the slice models do not find levels in most studies that they hold out: levels are not checked",
    "no_slice_model": "no slice model answered: no curves, slices or heat maps",
}
"""reason -> what it means"""

DISORDERS = frozenset({"levels_out_of_order", "level_missing", "level_twice", "gap"})
"""reasons that no sound study with a sound model has"""
