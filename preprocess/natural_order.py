"""Natural order of file names: `9.dcm` before `10.dcm`."""

import re


def natural_key(text: str) -> list:
    """A sort key in which runs of digits count as numbers; the text itself decides between `01` and `1`."""
    parts = re.split(r"(\d+)", text)
    return [*((int(part), "") if part.isdecimal() else (-1, part) for part in parts), (-1, text)]
