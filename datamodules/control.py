"""Experience of classic control, and of every such Gymnasium environment, as a LightningDataModule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.environments.control import ControlEnvironments, protocol, registration
from datamodules.replay.priorities import Prioritised
from datamodules.replay_data import ReplayData
from modules.errors import UserError


class ControlReplay(ReplayData):
    """Collects experience of a Gymnasium environment with discrete actions and vectors to observe, or reads a store.

    Without `path` the run plays itself: its store lies in the run's own folder, and the `Collect` callback fills it
    while it trains. With `path` it trains from the rows of an existing store and plays nothing.

    Args:
        id: of Gymnasium's registry, such as CartPole-v1, or package:Name-v0 to import a package first; null takes that
            of the store at `path`.
        num_envs: environments that are played for training, each with an environment of its own.
        num_validation_envs: environments whose environments are held out for validation; 0 holds out nothing.
        batch_size: windows in a batch, per rank.
        sequence_length: rows of a window.
        cross_episodes: let windows cross the ends of episodes; models mask what does not follow.
        capacity: training rows that the store keeps; the oldest make room for new ones.
        validation_batches: held-out batches per validation; no picture or report takes more windows than these hold.
        path: folder of an existing store.
        recent: training windows are drawn from the last so many rows of every environment; null draws from all. With
            `sequence_length` these are the newest rows alone, for on-policy learning.
        extras: float32 columns that actors leave beside their actions, such as log_prob and value.
        seed: of environments and sampling; null takes `seed_everything`.
        prioritised: draw training windows by what they have to teach; null draws uniformly.
    """

    def __init__(
        self,
        id: str | None = None,
        num_envs: int = 1,
        num_validation_envs: int = 0,
        batch_size: int = 256,
        sequence_length: int = 2,
        cross_episodes: bool = True,
        capacity: int = 100_000,
        validation_batches: int = 16,
        path: Path | None = None,
        recent: int | None = None,
        extras: tuple[str, ...] = (),
        seed: int | None = None,
        prioritised: Prioritised | None = None,
    ) -> None:
        super().__init__(
            num_envs=num_envs,
            num_validation_envs=num_validation_envs,
            frame_stack=1,
            batch_size=batch_size,
            sequence_length=sequence_length,
            cross_episodes=cross_episodes,
            capacity=capacity,
            validation_batches=validation_batches,
            path=path,
            recent=recent,
            extras=extras,
            seed=seed,
            prioritised=prioritised,
        )
        self.id = id
        if path is None and id is None:
            raise UserError("data.id or data.path is needed: an environment such as CartPole-v1, or a store to read")
        if id is not None:
            registration(id)

    @property
    def name(self) -> str:  # type: ignore[override]
        """The environment's id."""
        if self.id is not None:
            return self.id
        return self.description["id"]

    def expected(self) -> dict[str, Any]:
        """Return the id and the time limit, where an id is given."""
        expected: dict[str, Any] = {"environment": "control"}
        return expected if self.id is None else expected | {"id": self.id, "protocol": protocol(self.id)}

    def training_environment(self, num_envs: int, seed: int) -> ControlEnvironments:
        """Make environments with the time limit of their registration."""
        assert self.id is not None
        return ControlEnvironments(self.id, num_envs, seed=seed)

    def evaluation_environment(self, num_envs: int, seed: int) -> ControlEnvironments:
        """Make environments of the store's id; they play as in training.

        Raises:
            UserError: the store alone names a package to import.
        """
        if self.id is None and ":" in self.description["id"]:
            raise UserError(f"the store is of {self.description['id']}, set data.id to that to let it be imported")
        return ControlEnvironments(self.description["id"], num_envs, variant="evaluation", seed=seed)
