"""Trained models as prediction uses them: from the runs of a plan, or packed in one file."""
