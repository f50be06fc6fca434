"""What a run has seen of whose labels and segmentations, and by which way."""
