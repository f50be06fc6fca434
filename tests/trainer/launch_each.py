"""Runs trainer/run.py's main once for each line of settings in a file, so that one launch serves several stages.

All processes but the first have a clock that hardly moves, as no two processes' clocks agree on when a checkpoint is due.
The last checkpoint of each stage stays, for one process to go on from.
"""

import itertools
import os
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path[0] = str(Path(__file__).resolve().parents[2])

from trainer import loop, run_output  # noqa: E402
from trainer.process.ending import leave  # noqa: E402
from trainer.run import close, main  # noqa: E402

if os.environ["RANK"] != "0":
    loop.time = SimpleNamespace(monotonic=itertools.count(step=1e-6).__next__)
run_output.remove_checkpoints = lambda run_dir: None
for line in Path(sys.argv[1]).read_text().splitlines():
    if status := main(line.split()):
        leave(status)
close()
leave(0)
