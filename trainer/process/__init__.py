"""Start, output, errors and end of the commands and their processes."""
