"""The callback that keeps the weights and the last checkpoint of a run that fails."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from datamodules.environments.environment import DeadEnvironmentError
from modules.errors import UserError
from pipelines.callbacks.run import Run
from pipelines.runs.checkpoint_files import LAST


class Guard(Callback):
    """Stops a run before a loss that is not finite reaches the weights, and saves `last.ckpt` whenever a run ends.

    After SIGTERM Lightning ends the batch and then the run; the checkpoint is written in between. A dead environment
    is handled the same way, but only with one process: with several, the other ranks would block. If a GPU runs out of
    memory, the run ends with one line that names a batch that fits.
    """

    def __init__(self) -> None:
        self.batch: Any = None
        self.restored = False
        self.held = 0
        """Bytes on the GPU before the first update: weights and frames."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that a resumed run has its optimizer and its counters back, and what the GPU holds."""
        self.restored = True
        if pl_module.device.type == "cuda":
            self.held = torch.cuda.memory_allocated(pl_module.device)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the batch, to save it if its loss is not finite."""
        self.batch = batch

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Stop the run if the loss is not finite: save the batch, and leave the weights unchanged."""
        if math.isfinite(loss.item()):
            return
        folder = Path(trainer.default_root_dir)
        path = folder / f"bad_batch_{trainer.global_step}_rank{trainer.global_rank}.pt"
        torch.save({kind: vars(rows.to("cpu")) for kind, rows in self.batch.items()}, path)
        wrong = Run(trainer).model.nonfinite_reason() or f"the loss is {loss.item()}"
        raise UserError(
            f"{wrong} at update {trainer.global_step}: try a smaller learning rate or "
            f"trainer.gradient_clip_val; the batch is {path}, {kept(trainer)}"
        )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save `last.ckpt` if the process received SIGTERM or an environment died; say what fits a full GPU."""
        if isinstance(exception, torch.OutOfMemoryError) and self.batch is not None:
            total = torch.cuda.get_device_properties(pl_module.device).total_memory
            sizes = {kind: rows.shape[0] for kind, rows in self.batch.items()}
            raise UserError(f"{out_of_memory(sizes, self.held, total)}; {kept(trainer)}") from exception
        stopped = isinstance(exception, SIGTERMException)
        dead = isinstance(exception, DeadEnvironmentError) and trainer.world_size == 1
        # Until a resumed run has restored its state, the checkpoint that it resumes from is better.
        whole = self.restored or trainer.ckpt_path is None
        if (stopped or dead) and whole and trainer.state.fn == "fit":
            trainer.save_checkpoint(last_checkpoint(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save `last.ckpt` after the last update."""
        trainer.save_checkpoint(last_checkpoint(trainer))


def last_checkpoint(trainer: Trainer) -> Path:
    """Return the path that `--ckpt_path last` reads."""
    return Path(trainer.default_root_dir) / "checkpoints" / LAST


def kept(trainer: Trainer) -> str:
    """Say from which checkpoint a run that failed can go on."""
    last = last_checkpoint(trainer)
    return f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was written yet"


def out_of_memory(sizes: dict[str, int], held: int, total: int) -> str:
    """Say what is too large for a GPU, and what to try.

    Args:
        sizes: numbers of windows in the batches of the update that failed.
        held: bytes that weights and frames take.
        total: bytes of the GPU.
    """
    gib = 2**30
    found = f"out of GPU memory: weights and frames take {held / gib:.1f} of {total / gib:.1f} GiB, and a batch of "
    found += " and ".join(f"{number} {kind} windows" for kind, number in sizes.items()) + " does not fit beside them"
    if held > total / 2:
        return f"{found}: set data.storage.frames_on_device to false, or take a smaller model"
    if (largest := max(sizes.values())) == 1:
        return f"{found}: take a smaller model"
    # The memory of an update is proportional to its windows, and this one needed more than was free.
    return f"{found}: try {2 ** ((largest - 1).bit_length() - 1)} windows (data.sampling.batch_size)"
