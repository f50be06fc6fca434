"""What a run finds out before its first step: layout, compilation, micro-batch; and the feature bank."""
