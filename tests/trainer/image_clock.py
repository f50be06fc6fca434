"""A clock that real networks drive: its seconds are the images that CNNs have seen. `python image_clock.py DIES WORD ...` predicts by it.

DIES: after so many looks at the clock the process kills itself; 0: never.
"""

import os
import signal
import sys
from pathlib import Path

from torch import Tensor, nn

from trainer.models.backbone import Backbone


class ImageClock:
    """Counts while it is open."""

    def __init__(self, dies: int = 0):
        self.seconds, self.looks, self.dies = 0.0, 0, dies

    def __enter__(self) -> "ImageClock":
        self._hook = nn.modules.module.register_module_forward_hook(self._count)
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()

    def _count(self, module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        if isinstance(module, Backbone):
            self.seconds += len(given[0])

    def __call__(self) -> float:
        self.looks += 1
        if self.looks == self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.seconds


if __name__ == "__main__":
    from test_limit import GIVEN

    from trainer.predict import predict_studies
    from trainer.predictor.limit import Limit

    dies, source, models, out, limit = sys.argv[1:]
    with ImageClock(int(dies)) as clock:
        sys.exit(
            predict_studies(Path(source), Path(models), Path(out), GIVEN, limit=Limit(float(limit), clock, 0.0))[1]
        )
