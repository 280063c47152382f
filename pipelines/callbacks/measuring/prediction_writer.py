"""The callback that writes the predictions of `dreamcade predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter


class PredictionWriter(BasePredictionWriter):
    """Writes every predicted batch to batch_<n>_rank<r>.npz in the run's predict folder, under its fields' names."""

    def __init__(self) -> None:
        super().__init__(write_interval="batch")

    def write_on_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, prediction: dict[str, Any], *args: Any
    ) -> None:
        """Write one predicted batch."""
        batch_idx = args[2]
        path = Path(trainer.default_root_dir) / f"batch_{batch_idx}_rank{trainer.global_rank}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **{name: value.cpu().numpy() for name, value in prediction.items()})
