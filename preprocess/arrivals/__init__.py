"""Studies that arrive in a folder, piece by piece."""
