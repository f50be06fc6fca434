"""docs/images/demo.png, after `make demo`: .venv/bin/python docs/images/demo.py [DEMO]

From the sheets that `python -m trainer.look` draws: study boxes, and below them the rows of vertebra ratios.
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image

from trainer.look.__main__ import main

WIDTH = 1080
RATIO_ROWS = 0.6
"""of the height of the sheet of curves; the fractures below are flat, since the demo trains too little to learn them"""


def draw(demo: Path) -> Image.Image:
    """demo: holds `cache` and `runs`. Raises FileNotFoundError where trainer.look drew nothing."""
    with tempfile.TemporaryDirectory() as out:
        main([f"tables={demo / 'runs'}", f"cache={demo / 'cache'}", f"out={out}", "items=2"])
        boxes, curves = (Image.open(Path(out, f"{name}-01.png")).convert("RGB") for name in ("boxes", "curves"))
    sheets = (boxes, curves.crop((0, 0, curves.width, int(RATIO_ROWS * curves.height))))
    sheets = [sheet.resize((WIDTH, sheet.height * WIDTH // sheet.width), Image.Resampling.LANCZOS) for sheet in sheets]
    whole = Image.new("RGB", (WIDTH, sum(sheet.height for sheet in sheets)))
    whole.paste(sheets[0], (0, 0))
    whole.paste(sheets[1], (0, sheets[0].height))
    return whole.quantize(method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)


if __name__ == "__main__":
    draw(Path(*sys.argv[1:] or ["work/demo"])).save(Path(__file__).with_suffix(".png"), optimize=True)
