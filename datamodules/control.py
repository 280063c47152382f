"""Experience of classic control and similar Gymnasium environments as a LightningDataModule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.environments.control import ControlEnvironments, protocol, registration
from datamodules.replay_data import ReplayData
from datamodules.settings import Envs, Sampling, Storage
from modules.errors import UserError


class ControlReplay(ReplayData):
    """Collects experience of a Gymnasium environment with discrete actions and vectors to observe, or reads a store.

    Without `path` the run plays the environment itself: the `Collect` callback fills a store in the run's folder
    during training. With `path` the run trains from the rows of an existing store and plays nothing.

    Args:
        id: id of Gymnasium's registry, such as CartPole-v1, or package:Name-v0 to import a package first; null takes
            the id of the store at `path`.
    """

    def __init__(
        self,
        id: str | None = None,
        envs: Envs = Envs(),
        sampling: Sampling = Sampling(batch_size=256, sequence_length=2),
        storage: Storage = Storage(),
        path: Path | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(1, envs, sampling, storage, path, seed)
        self.id = id
        if path is None and id is None:
            raise UserError("data.id or data.path is needed: an environment such as CartPole-v1, or a store to read")
        if id is not None:
            registration(id)

    @property
    def name(self) -> str:  # type: ignore[override]
        """Id of the environment."""
        if self.id is not None:
            return self.id
        return self.description["id"]

    def expected(self) -> dict[str, Any]:
        """Return the id and the time limit, if an id is given."""
        expected: dict[str, Any] = {"environment": "control"}
        return expected if self.id is None else expected | {"id": self.id, "protocol": protocol(self.id)}

    def training_environment(self, num_envs: int, seed: int) -> ControlEnvironments:
        """Make environments with the time limit of their registration."""
        assert self.id is not None
        return ControlEnvironments(self.id, num_envs, seed=seed)

    def evaluation_environment(self, num_envs: int, seed: int) -> ControlEnvironments:
        """Make environments of the store's id; they play as in training.

        Raises:
            UserError: the store names a package to import, and `id` does not.
        """
        if self.id is None and ":" in self.description["id"]:
            raise UserError(
                f"the store's environment {self.description['id']} imports a package: set data.id to it to allow that"
            )
        return ControlEnvironments(self.description["id"], num_envs, variant="evaluation", seed=seed)
