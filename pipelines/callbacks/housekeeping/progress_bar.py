"""The progress bar of a run."""

from __future__ import annotations

import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """Shows updates, rate, remaining time and the main metrics, four times a second."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=4)
        self._next_update = 0.0
        """Time of the monotonic clock before which the bar stays as it is."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Advance the bar, unless it has just been advanced: that costs more than all other callbacks together."""
        if time.monotonic() >= self._next_update or trainer.is_last_batch:
            super().on_train_batch_end(trainer, *args)
            self._next_update = time.monotonic() + 1 / self.refresh_rate

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the metrics of the bar without the version number and the prefix train/."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {name.removeprefix("train/"): value for name, value in metrics.items()}

    def _get_train_description(self, current_epoch: int) -> str:
        done, total = self.trainer.global_step, self.trainer.max_steps
        return "training" if done == 0 or total < 0 else f"training, from update {done} of {total}"
