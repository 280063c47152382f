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
    """Writes the configuration to config.yaml in the run's folder, to checkpoints and to Weights & Biases."""

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
        checkpoint |= header(Run(trainer), self.plain())
