"""The resolved configuration, wherever somebody will look for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger

from pipelines.machine.provenance import commit, record_start, replace_text, version
from pipelines.runs.checkpoint_files import FORMAT_VERSION


class SaveConfig(SaveConfigCallback):
    """Writes config.yaml to the run's folder, and the same as plain data to checkpoints and Weights & Biases."""

    def plain(self) -> dict[str, Any]:
        """Return the resolved configuration as plain data, but for the run's folder and what it went on from.

        So `--config config.yaml` does the same again, in a folder of its own.
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
        """Write the file and what it takes to repeat this start, and tell Weights & Biases."""
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(folder / "config.yaml", yaml.safe_dump(self.plain(), sort_keys=False))
        record_start(folder)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.config.update(self.plain(), allow_val_change=True)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put into the checkpoint what made it: the configuration, what was played and how, and by which dreamcade."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        checkpoint |= {
            "format_version": FORMAT_VERSION,
            "version": version(),
            "commit": commit(),
            "config": self.plain(),
            "game": getattr(data, "name", None),
            "protocol": getattr(data, "description", {}).get("protocol"),
        }
