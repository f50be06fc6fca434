"""Which labels and segmentations a run has seen, and how."""
