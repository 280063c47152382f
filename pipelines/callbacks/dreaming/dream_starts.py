"""Where a dream can begin: the first rows of real episodes, in every checkpoint."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from modules.batch import Batch, stack
from modules.errors import UserError
from modules.world_model import Spec


class DreamStarts(Callback):
    """Keeps the openings of a few training episodes in checkpoints, for dream environments to start from.

    They lie evenly spaced in the store, are taken once, by the first checkpoint that finds enough, and stay when the
    run goes on. No random numbers are drawn. What is played, how, and how long it was, is kept beside
    them.

    Args:
        num: episodes.
        rows: of each, that a model observes before it dreams.
    """

    def __init__(self, num: int = 16, rows: int = 4) -> None:
        if num < 1 or rows < 1:
            raise UserError(f"openings needs num and rows of at least 1: got {num} and {rows}")
        self.num = num
        self.rows = rows
        self.kept: dict[str, Tensor] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the openings into the checkpoint, where there are any by now."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if getattr(data, "store", None) is None:
            return
        if self.kept is None or len(self.kept["action"]) < self.num:
            # Another process may be overwriting an existing store: then the next checkpoint tries again.
            with suppress(UserError):
                self.kept = self._take(data) or self.kept
        checkpoint["world"] = data.name
        checkpoint["description"] = data.description
        checkpoint["env_steps"] = data.real_steps * trainer.world_size
        if self.kept is not None:
            checkpoint["dream_starts"] = self.kept

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Stay with those that the run began with."""
        self.kept = checkpoint.get("dream_starts")

    def _take(self, data: Any) -> dict[str, Tensor] | None:
        env, start = data.store.episode_starts(self.rows)
        if len(env) == 0:
            return None
        pick = np.linspace(0, len(env) - 1, min(self.num, len(env))).round().astype(np.int64)
        batch = data.store.gather(env[pick], start[pick], self.rows)
        return {name: column for name, column in vars(batch).items() if isinstance(column, Tensor)}


def unpack(episode_starts: dict[str, Any], spec: Spec) -> Batch:
    """Return the windows (N, T) that a checkpoint keeps as single frames, with stacks of them.

    Before an episode's first frame there is none but that one, so nothing is missing.
    """
    batch = Batch(**episode_starts)
    assert batch.observation is not None
    return batch.replace(observation=stack(batch.observation, batch.is_first, spec.frame_stack))
