"""Where a dream can begin: the first rows of real episodes, in every checkpoint."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from datamodules.replay.store import ReplayStore
from modules.batch import Batch, stack
from modules.errors import UserError
from modules.world_model import Spec
from pipelines.callbacks.run import Run


class DreamStarts(Callback):
    """Keeps the first rows of a few training episodes in checkpoints, for dream environments to start from.

    They are taken as soon as there are any, before a small store overwrites them, evenly spaced over the episodes that
    it holds, and taken anew while that gives more, until there are enough. A run that goes on stays with those that it
    began with. No random numbers are drawn.

    Args:
        num: number of episodes to keep.
        rows: number of first rows of each episode, which a model observes before it dreams.
    """

    def __init__(self, num: int = 16, rows: int = 4) -> None:
        if num < 1 or rows < 1:
            raise UserError(f"dream starts need num and rows of at least 1: got {num} and {rows}")
        self.num = num
        self.rows = rows
        self.kept: dict[str, Tensor] | None = None
        self._looked_at = 0
        """Rows of the store when it was last searched."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take what was played before the first update."""
        self._take(Run(trainer).store)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Take what was played since, while there are too few."""
        self._take(Run(trainer).store)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put them into the checkpoint, where there are any by now."""
        if self.kept is not None:
            checkpoint["dream_starts"] = self.kept

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Stay with those that the run began with."""
        self.kept = checkpoint.get("dream_starts")

    def _take(self, store: ReplayStore) -> None:
        have = 0 if self.kept is None else len(self.kept["action"])
        if have >= self.num or store.rows == self._looked_at:
            return
        self._looked_at = store.rows
        # Another process may be overwriting an existing store: then the next batch tries again.
        with suppress(UserError):
            env, start = store.episode_starts(self.rows)
            if len(env) <= have:
                return
            pick = np.linspace(0, len(env) - 1, min(self.num, len(env))).round().astype(np.int64)
            batch = store.gather(env[pick], start[pick], self.rows)
            self.kept = {name: column for name, column in vars(batch).items() if isinstance(column, Tensor)}


def unpack(episode_starts: dict[str, Any], spec: Spec) -> Batch:
    """Return the windows (N, T) that a checkpoint keeps as single frames, with stacks of them.

    Before an episode's first frame there is none but that one, so nothing is missing.
    """
    batch = Batch(**episode_starts)
    assert batch.observation is not None
    return batch.replace(observation=stack(batch.observation, batch.is_first, spec.frame_stack))
