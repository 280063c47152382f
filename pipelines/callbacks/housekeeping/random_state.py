"""The callback that saves and restores torch's random generators."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from datamodules.ranks import gather, of_rank


class RandomState(Callback):
    """Saves torch's default generators of every rank in checkpoints, and restores them."""

    def __init__(self) -> None:
        self.restored: list[dict[str, Any]] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the random generators of a resumed run, after the start has drawn from them."""
        if self.restored is None:
            return
        state = of_rank(self.restored, trainer.global_rank)
        torch.set_rng_state(state["cpu"])
        if pl_module.device.type == "cuda" and state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], pl_module.device)
        self.restored = None

    def state_dict(self) -> dict[str, Any]:
        """Return the states of every rank's generators."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
        return {"ranks": gather({"cpu": torch.get_rng_state(), "cuda": cuda})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the states of the generators until training starts."""
        self.restored = state_dict["ranks"]
