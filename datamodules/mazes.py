"""Experience of grid mazes as a LightningDataModule."""

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
    """Endless training batches of what was just played."""

    def __init__(self, data: MazeReplay) -> None:
        self.data = data

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        while True:
            yield {"real": self.data.newest()}


class MazeReplay(ReplayData):
    """Plays a maze in environments side by side; a training batch is the newest transition of every environment, in
    order.

    So every transition is learned from once, if `Collect` plays as many steps per update as there are environments. The
    row that opens an episode anew is no transition. The step from a transition's end is chosen before the transition
    is learned from, since a row is whole only with its action; where an episode ends there is no such delay. With
    `path` windows are drawn from the rows of an existing store.

    Args:
        maze: "dyna", "blocking" or "shortcut"; null takes that of the store at `path`.
        change_at: steps of an environment after which its maze changes; null takes the book's.
        max_steps: number of steps of an episode, which is truncated then; null sets no limit.
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
        """The maze."""
        if self.maze is not None:
            return f"{self.maze} maze"
        return f"{self.description['id']} maze"

    def expected(self) -> dict[str, Any]:
        """Return what the description of a store says of this maze."""
        if self.maze is None:
            return {"environment": "maze"}
        return self.training_environment(self.envs.training, 0).description

    def training_environment(self, num_envs: int, seed: int) -> MazeEnvironments:
        """Make mazes; a seed makes no difference."""
        assert self.maze is not None
        return MazeEnvironments(self.maze, num_envs, self.change_at, self.max_steps)

    def evaluation_environment(self, num_envs: int, seed: int) -> MazeEnvironments:
        """Make mazes as they are at the start."""
        description = self.description
        return MazeEnvironments(description["id"], num_envs, **description["protocol"])

    def newest(self) -> Batch:
        """Return the last two rows of every training environment, in order."""
        assert self.store is not None
        envs = self.store.select("training")
        return self.store.gather(envs, np.full(len(envs), self.store.rows - 2), 2)

    def train_dataloader(self) -> DataLoader:
        """Endless batches {"real": (num_envs, 2)}, of the newest rows while the run plays itself."""
        assert self.store is not None
        if not self.store.writable:
            return super().train_dataloader()
        return DataLoader(Newest(self), batch_size=None, num_workers=0)
