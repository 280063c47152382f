"""What must not be lost when a run goes wrong."""

from __future__ import annotations

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

    After SIGTERM Lightning ends the batch and then the run; the checkpoint is written in between. So it is where an
    environment dies in a run of one process; of several the others would wait for ever.
    """

    def __init__(self) -> None:
        self.batch: Any = None
        self.restored = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Know that a run that goes on has its optimizer and its counters back."""
        self.restored = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the batch."""
        self.batch = batch

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Stop if the loss is not finite: the batch is written down, the weights stay as they are."""
        if torch.isfinite(loss):
            return
        folder = Path(trainer.default_root_dir)
        path = folder / f"bad_batch_{trainer.global_step}_rank{trainer.global_rank}.pt"
        torch.save({kind: vars(rows.to("cpu")) for kind, rows in self.batch.items()}, path)
        last = last_checkpoint(trainer)
        kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was written yet"
        wrong = Run(trainer).model.nonfinite_reason() or f"the loss is {loss.item()}"
        raise UserError(
            f"{wrong} at update {trainer.global_step}: try a smaller learning rate or "
            f"trainer.gradient_clip_val; the batch is {path}, {kept}"
        )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save, where the process was told to stop, or an environment died."""
        stopped = isinstance(exception, SIGTERMException)
        dead = isinstance(exception, DeadEnvironmentError) and trainer.world_size == 1
        # Before a run that goes on has back what it had, the checkpoint that it goes on from is better.
        whole = self.restored or trainer.ckpt_path is None
        if (stopped or dead) and whole and trainer.state.fn == "fit":
            trainer.save_checkpoint(last_checkpoint(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what the last updates made."""
        trainer.save_checkpoint(last_checkpoint(trainer))


def last_checkpoint(trainer: Trainer) -> Path:
    """Return where `--ckpt_path last` looks."""
    return Path(trainer.default_root_dir) / "checkpoints" / LAST
