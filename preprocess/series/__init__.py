"""Which images make one volume, in which order and orientation: every reason to refuse a study, its geometry and its flags."""
