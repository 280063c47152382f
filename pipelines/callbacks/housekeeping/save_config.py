"""The callback that saves the resolved configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from pipelines.callbacks.run import Run
from pipelines.machine.provenance import record_start, replace_text
from pipelines.runs.header import header


class SaveConfig(SaveConfigCallback):
    """Writes the configuration to config.yaml in the run's folder, to checkpoints and to Weights & Biases.

    A new run writes config.yaml at once. A run that goes on writes it with its first update or checkpoint, because a
    refused start must leave the run's folder unchanged.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write config.yaml of a new run."""
        if self.config["ckpt_path"] is None:
            super().setup(trainer, pl_module, stage)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Write config.yaml of a resumed run."""
        self._write(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write config.yaml of a resumed run that had no update left."""
        self._write(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write config.yaml of a command that only measures, once the weights are restored."""
        if trainer.state.fn != "fit":
            self._write(trainer, pl_module)

    on_test_start = on_predict_start = on_validation_start

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.already_saved and trainer.is_global_zero:
            self.save_config(trainer, pl_module, str(trainer.state.fn))
        self.already_saved = True

    def plain(self) -> dict[str, Any]:
        """Return the resolved configuration as plain data, without the run's folder and `ckpt_path`.

        `--config config.yaml` therefore repeats the run in a new folder.
        """
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        folder = config["trainer"]["default_root_dir"]
        loggers = config["trainer"]["logger"]
        for logger in loggers if isinstance(loggers, list) else []:
            if logger["init_args"].get("save_dir") == folder:
                logger["init_args"]["save_dir"] = None
        config["trainer"]["default_root_dir"] = config["ckpt_path"] = None
        return config

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write config.yaml and the record of this start, and send the configuration to Weights & Biases."""
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(folder / "config.yaml", yaml.safe_dump(self.plain(), sort_keys=False))
        record_start(folder)
        for logger in Run(trainer).wandb():
            logger.experiment.config.update(self.plain(), allow_val_change=True)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the header to the checkpoint: versions, configuration and world."""
        self._write(trainer, pl_module)
        checkpoint |= header(Run(trainer), self.plain())
