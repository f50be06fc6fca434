"""A NIfTI segmentation -> slice boxes and vertebra ratios, and the checks that it belongs to its study."""
