"""Runs trainer/run.py's main once for each line of settings in a file, so that one launch serves several stages."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from trainer.run import main  # noqa: E402

for line in Path(sys.argv[1]).read_text().splitlines():
    if status := main(line.split()):
        sys.exit(status)
