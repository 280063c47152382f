"""Dream starts: first rows of real episodes, which every checkpoint keeps."""

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
    """Keeps the first rows of a few training episodes in checkpoints. Dream environments start from them.

    The episodes are evenly spaced over those in the store. They are chosen as soon as the store holds any, because a
    small store overwrites them, and chosen again whenever there are more, until there are `num`. A resumed run keeps
    the dream starts of its checkpoint. No random numbers are drawn.

    Args:
        num: number of episodes whose first rows are kept.
        rows: number of first rows that are kept of each episode, which a model observes before it dreams.
    """

    def __init__(self, num: int = 16, rows: int = 4) -> None:
        if num < 1 or rows < 1:
            raise UserError(f"dream starts need num and rows of at least 1: got {num} and {rows}")
        self.num = num
        self.rows = rows
        self.kept: dict[str, Tensor] | None = None
        self._looked_at = 0
        """Number of rows in the store when it was last searched."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep first rows of episodes from the prefill."""
        self._take(Run(trainer).store)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Keep first rows of new episodes, until there are enough."""
        self._take(Run(trainer).store)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the dream starts into the checkpoint, if there are any."""
        if self.kept is not None:
            checkpoint["dream_starts"] = self.kept

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the dream starts of the checkpoint."""
        self.kept = checkpoint.get("dream_starts")

    def _take(self, store: ReplayStore) -> None:
        have = 0 if self.kept is None else len(self.kept["action"])
        if have >= self.num or store.rows == self._looked_at:
            return
        self._looked_at = store.rows
        # Another process may be overwriting an existing store. The next update then tries again.
        with suppress(UserError):
            env, start = store.episode_starts(self.rows)
            if len(env) <= have:
                return
            pick = np.linspace(0, len(env) - 1, min(self.num, len(env))).round().astype(np.int64)
            batch = store.gather(env[pick], start[pick], self.rows)
            self.kept = {name: column for name, column in vars(batch).items() if isinstance(column, Tensor)}


def unpack(episode_starts: dict[str, Any], spec: Spec) -> Batch:
    """Return the dream starts (N, T) of a checkpoint with stacked frames. The checkpoint keeps single frames.

    Every window begins with the first frame of an episode, which fills the stack, so no earlier frame is needed.
    """
    batch = Batch(**episode_starts)
    assert batch.observation is not None
    return batch.replace(observation=stack(batch.observation, batch.is_first, spec.frame_stack))
