"""The resolved configuration, wherever somebody will look for it."""

from __future__ import annotations

from typing import Any

import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger


class SaveConfig(SaveConfigCallback):
    """Writes config.yaml to the run's folder, and the same as plain data to checkpoints and Weights & Biases."""

    def plain(self) -> dict[str, Any]:
        """Return the resolved configuration as plain data."""
        return yaml.safe_load(self.parser.dump(self.config, skip_none=False))

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell Weights & Biases."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.config.update(self.plain(), allow_val_change=True)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the configuration into the checkpoint."""
        checkpoint["config"] = self.plain()
