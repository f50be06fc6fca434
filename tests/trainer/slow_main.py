"""Runs trainer/run.py's main where the main process takes longer to log scores than a lost process may be silent.

In the middle of a training the others wait for it in a collective, and at the end with nothing left to do.
"""

import os
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from trainer.process.ending import leave  # noqa: E402
from trainer.process.machines import SILENCE  # noqa: E402
from trainer.run import close, main  # noqa: E402
from trainer.runs.metrics_log import MetricsLog  # noqa: E402

if os.environ["RANK"] == "0":
    score = MetricsLog.score
    MetricsLog.score = lambda *given: (time.sleep(SILENCE + 10), score(*given))
status = main(sys.argv[1:])
if not status:
    close()
leave(status)
