"""The state of one training or prediction in this process: settings, inputs, stage, Accelerate, and its loaders."""

import os
from functools import cached_property

import cv2
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, LoggerType, gather_object, set_seed
from torch import distributed

from cache_schema.errors import StaleStudy, UsageError
from trainer.data.augment import Augmentation
from trainer.data.loader import Loader
from trainer.data.order import Evaluation, Training
from trainer.data.reader_pool import Readers, wanted_workers
from trainer.data.resident import Crops
from trainer.data.source import TRIPLET_CHUNKS_BYTES, Source, squares
from trainer.process import machines
from trainer.process.command import say
from trainer.process.shared_memory import free_shared_memory, spare_shared_memory
from trainer.runs.identity import prediction_inputs
from trainer.runs.inputs import Inputs
from trainer.settings.settings import Settings
from trainer.stages.base import Stage

THREADS = torch.get_num_threads()
"""torch's default in this process; a run may set another number"""


class ReplacedForAll(StaleStudy, UsageError):
    """A replaced study that one process found. All raise it, and the main process reports it."""


class Session:
    """Built from checked settings. A process may have several in turn, each with its own precision."""

    def __init__(self, settings: Settings, inputs: Inputs, key: str, *, quiet: bool = False):
        """quiet: print nothing."""
        self.settings, self.inputs, self.key, self.quiet = settings, inputs, key, quiet
        self.accelerator = accelerator(settings)
        self.stage: Stage = settings.facts(settings, inputs)
        if settings.mode == "train":
            set_seed(settings.seed, deterministic=False)

    @property
    def by_block(self) -> bool:
        """Whether training items overlap, so that blocks of them are shuffled and decoded chunks kept."""
        return self.stage.items == "triplets"

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def say(self, line: str) -> None:
        """Prints from the main process."""
        if not self.quiet:
            self.accelerator.print(line, flush=True)

    def check_fresh(self) -> None:
        """Raises StaleStudy in all processes if one finds a replaced study. Called before anything is saved."""
        stale = None
        try:
            self.inputs.check_fresh()
        except StaleStudy as error:
            stale = error.__dict__
        found = [each for each in gather_object([stale]) if each is not None]
        if found:
            raise ReplacedForAll(found[0]["what"], where=found[0]["where"], do=found[0]["do"])

    def require_same_inputs(self) -> None:
        """Raises UsageError in all processes if cache or tables changed while they opened them."""
        own = prediction_inputs(self.settings, self.inputs, self.key)
        if any(found != own for found in gather_object([own])):
            line = "studies, labels or tables changed while the processes of this run opened them"
            raise UsageError(line, where=self.settings.cache, do="start again")

    def require_boxes(self, ids: list[str]) -> None:
        """Raises UsageError if a study to train on or to predict lacks the box that the stage needs."""
        if self.settings.needs_boxes:
            self.inputs.require_boxes([*ids, *self.inputs.eval_ids()])

    def keep_crops(self, ids: list[str]) -> None:
        """data.resident=gpu: loads these studies' crops. Raises UsageError if they do not fit."""
        if self.crops is not None:
            self.crops.load(squares(self.inputs.cache, ids, self.inputs.crop_boxes(ids)))

    @cached_property
    def crops(self) -> Crops | None:
        resident = self.settings.data.resident == "gpu" and self.accelerator.device.type == "cuda"
        return Crops(self.inputs.cache, self.accelerator.device) if resident else None

    def augmentation(self) -> Augmentation:
        """Of training items."""
        settings = self.settings
        return Augmentation(settings.data.size, settings.seed, settings.augment, settings.data.thin)

    def no_augmentation(self) -> Augmentation:
        return Augmentation(self.settings.data.size)

    def loader(
        self,
        schedule: Training | Evaluation,
        batch: int,
        augmentation: Augmentation,
        ids: list[str],
        *,
        limit: int | None = None,
        targets: bool = False,
        keep_chunks: bool = False,
    ) -> Loader:
        """Batches of a schedule's items, all from studies in `ids`.

        limit: number of items; None: endless. keep_chunks: keep decoded chunks, which neighbouring items share.
        """
        data = self.settings.data
        kept = int(data.ram_gb * 2**30) if data.resident == "ram" else TRIPLET_CHUNKS_BYTES if keep_chunks else 0
        boxes, skip = self.inputs.crop_boxes(ids), data.on_error == "skip" and isinstance(schedule, Training)
        source = Source(self.inputs.cache, schedule, augmentation, boxes, data.intensity, kept, limit, skip)
        device, wanted = self.accelerator.device, self.stage.targets if targets else None
        return Loader(source, batch, data, device, wanted, self.crops, self.readers)

    @cached_property
    def readers(self) -> Readers | None:
        """Shared by all loaders of this session; they start on first use."""
        workers = wanted_workers(self.settings.data, self.accelerator.device)
        return Readers(workers) if workers else None

    def close(self) -> None:
        """Ends the reading processes."""
        if self.readers is not None:
            self.readers.close()


def on_gpu() -> bool:
    """Whether this process computes on a GPU."""
    return torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("true", "1", "yes")


def accelerator(settings: Settings) -> Accelerator:
    """An Accelerator by the settings. Sets the process-wide options of torch and OpenCV, too."""
    train = settings.train
    if settings.tracker != "none" and LoggerType(settings.tracker) not in get_available_trackers():
        raise UsageError(f"tracker={settings.tracker} is not installed", do="install it, or set tracker=none")
    torch.set_num_threads(train.threads or THREADS)
    cv2.setNumThreads(train.threads or -1)
    torch.use_deterministic_algorithms(settings.deterministic, warn_only=True)
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs it to be deterministic
    torch.backends.cudnn.benchmark = not settings.deterministic
    torch.backends.cudnn.allow_tf32 = False  # full float32, above all for the LSTMs
    gpu = on_gpu()
    precision = ("fp16" if gpu else "no") if train.precision == "auto" else train.precision
    if (asked := os.environ.get("ACCELERATE_MIXED_PRECISION", "no")) not in ("no", precision):
        say(f"train.precision={precision} overrides the launcher's mixed_precision={asked}")
    if precision == "fp16" and not gpu:
        raise UsageError("train.precision=fp16 needs a GPU, and there is none", expected="no, bf16 or auto")
    # Accelerate keeps the first run's precision for the whole process; this keeps the process group
    AcceleratorState._reset_state()
    try:
        return _accelerator(settings, precision, gpu)
    except ValueError as error:
        raise UsageError(
            f"train.precision={precision} is not available here ({error})", expected="no or auto"
        ) from None


def _accelerator(settings: Settings, precision: str, gpu: bool) -> Accelerator:
    if gpu and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        spared = spare_shared_memory(os.environ, free_shared_memory())
        os.environ.update(spared)
        if spared:
            say(
                "/dev/shm is small: GPUs without a direct path talk over sockets, which is slower; docker run --shm-size=1g"
            )
    made = Accelerator(
        cpu=not gpu,
        mixed_precision=precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False),
        log_with=None if settings.tracker == "none" else settings.tracker,
        project_dir=str(settings.run_dir),
        dynamo_backend="no",  # overrides `accelerate config`: it would rename weights, and train.autotune compiles
        kwargs_handlers=[InitProcessGroupKwargs(timeout=machines.CONNECTING)] if machines.joined else None,
    )
    if machines.joined:
        made.wait_for_everyone()
        machines.joined.connected = True  # it notices a lost process from here on, a collective need not
        set_timeout = getattr(distributed, "set_timeout", distributed.distributed_c10d._set_pg_timeout)  # torch < 2.12
        set_timeout(machines.COLLECTIVE)
    return made
