"""Grid-maze experience as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset

from datamodules.environments.mazes import MazeEnvironments
from datamodules.replay_data import ReplayData
from datamodules.settings import Envs, Sampling, Storage
from modules.batch import Batch
from modules.errors import UserError


class Newest(IterableDataset):
    """Yields endless training batches of the newest transitions."""

    def __init__(self, data: MazeReplay) -> None:
        self.data = data

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        while True:
            yield {"real": self.data.newest()}


class MazeReplay(ReplayData):
    """Plays a maze in parallel environments; a training batch is the newest transition of every environment, in order.

    The learner uses every transition once, if `Collect` plays as many steps per update as there are environments. The
    step that resets an environment is no transition. A row is complete only with its action. The actor therefore
    chooses the next action before the learner uses the transition, except at the end of an episode. With `path` the
    datamodule draws windows from the rows of an existing store.

    Args:
        maze: name of the maze, "dyna", "blocking" or "shortcut"; null takes the maze of the store at `path`.
        change_at: steps of an environment after which its maze changes; null takes the number of the book.
        max_steps: steps after which an episode is truncated; null sets no limit.
    """

    def __init__(
        self,
        maze: str | None = "dyna",
        change_at: int | None = None,
        max_steps: int | None = None,
        envs: Envs = Envs(training=30),
        sampling: Sampling = Sampling(batch_size=30, sequence_length=2),
        storage: Storage = Storage(capacity=10_000),
        path: Path | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(1, envs, sampling, storage, path, seed)
        self.maze = maze
        self.change_at = change_at
        self.max_steps = max_steps
        if path is None and maze is None:
            raise UserError("data.maze or data.path is needed: a maze to play, or a store to read")
        if maze is not None:
            self.training_environment(envs.training, 0)

    @property
    def name(self) -> str:  # type: ignore[override]
        """Name of the maze."""
        if self.maze is not None:
            return f"{self.maze} maze"
        return f"{self.description['id']} maze"

    def expected(self) -> dict[str, Any]:
        """Return the description that a store of this maze must have."""
        if self.maze is None:
            return {"environment": "maze"}
        return self.training_environment(self.envs.training, 0).description

    def training_environment(self, num_envs: int, seed: int) -> MazeEnvironments:
        """Make mazes; the seed has no effect."""
        assert self.maze is not None
        return MazeEnvironments(self.maze, num_envs, self.change_at, self.max_steps)

    def evaluation_environment(self, num_envs: int, seed: int) -> MazeEnvironments:
        """Make mazes in their initial state, before any change."""
        description = self.description
        return MazeEnvironments(description["id"], num_envs, **description["protocol"])

    def newest(self) -> Batch:
        """Return the last two rows of every training environment, in order."""
        envs = self.store.select("training")
        return self.store.gather(envs, np.full(len(envs), self.store.rows - 2), 2)

    def train_dataloader(self) -> DataLoader:
        """Return endless batches {"real": (num_envs, 2)} of the newest rows, or windows of an existing store."""
        windows = super().train_dataloader()
        return DataLoader(Newest(self), batch_size=None, num_workers=0) if self.store.writable else windows
