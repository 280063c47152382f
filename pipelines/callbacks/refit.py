"""What a model learns by other means than gradient descent."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer

from modules.errors import UserError


class Refit(Callback):
    """Calls the world model's `refit` on replayed rows before the first update, and every so many updates.

    Args:
        num_windows: windows of `sequence_length` rows to fit to.
        sequence_length: rows of a window.
        every: updates between two fits; null fits once.
    """

    def __init__(self, num_windows: int = 256, sequence_length: int = 2, every: int | None = None) -> None:
        if every is not None and every < 1:
            raise UserError(f"refit.every must be at least 1 update, or null to fit once: got {every}")
        self.num_windows = num_windows
        self.sequence_length = sequence_length
        self.every = every

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit a fresh model; a restored one keeps what it had."""
        if trainer.global_step == 0:
            self._refit(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Fit again."""
        if self.every is not None and trainer.global_step % self.every == 0:
            self._refit(trainer, pl_module)

    def _refit(self, trainer: Trainer, pl_module: Any) -> None:
        batch = trainer.datamodule.sample(self.num_windows, self.sequence_length)  # type: ignore[attr-defined]
        pl_module.refit(batch.to(pl_module.device))
