"""The bar that a run shows."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """Updates, rate, time left and the metrics that matter.

    Args:
        refresh_rate: updates between two looks at the bar.
    """

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate=refresh_rate)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Drop the version number and the prefixes."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {name.removeprefix("train/"): value for name, value in metrics.items()}

    def _get_train_description(self, current_epoch: int) -> str:
        return (
            f"update {self.trainer.global_step} of {self.trainer.max_steps}"
            if self.trainer.max_steps > 0
            else "training"
        )
