"""The vector interface of every real environment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np

from modules.errors import UserError


class Transition(NamedTuple):
    """The result of one vector step.

    NEXT_STEP autoreset: the step after a done step ignores its action, returns reward 0 and the first observation of
    the new episode, and is never done.
    """

    observation: np.ndarray
    """(N, *observation_shape): o_{t+1}, or the first observation of a new episode after a done step."""
    reward: np.ndarray
    """(N,) float32: raw reward of a_t."""
    terminated: np.ndarray
    """(N,) bool: a_t ended the episode, and o_{t+1} is its last observation."""
    truncated: np.ndarray
    """(N,) bool: the episode was cut at o_{t+1}, where a learner bootstraps. Never together with terminated."""


class DeadEnvironmentError(UserError):
    """An environment raised an error or returned values that are not finite, and can no longer be used."""


class VectorEnvironment(ABC):
    """N copies of one real environment with discrete actions, which are stepped together.

    Returned arrays are fresh: no later call writes to them.
    """

    num_envs: int
    observation_shape: tuple[int, ...]
    """Shape (C, H, W) of a single uint8 frame, or (D,) of a float32 vector."""
    num_actions: int
    action_meanings: tuple[str, ...]
    """One name per action."""
    description: dict[str, Any]
    """Plain JSON data, equal to itself after a round trip, which a store records and compares."""

    seeds: np.ndarray
    """(N,) int64: seeds of the episodes that the last `reset` started."""

    @abstractmethod
    def reset(self, stream: int = 0) -> np.ndarray:
        """Start N episodes and return their first observations (N, *observation_shape).

        The constructor's seed and the stream always determine the seeds; a resumed run uses another stream.
        """

    @abstractmethod
    def step(self, actions: np.ndarray) -> Transition:
        """Execute actions (N,) int64, each in [0, num_actions)."""

    def state_dict(self) -> dict[str, Any] | None:
        """Return plain data that restores the present state; None if the environment cannot save its state."""
        return None

    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        """Restore a `state_dict` and return its observations (N, *observation_shape)."""
        raise NotImplementedError

    def legal_actions(self) -> np.ndarray | None:
        """Return the legal actions (N, A) bool; None if all actions are always legal.

        Every action is legal at the last observation of an episode, since the action is ignored.
        """
        return None

    def mover(self) -> np.ndarray | None:
        """Return the player to move (N,) int64, numbered from 0; None if there is only one player."""
        return None

    def screens(self) -> np.ndarray | None:
        """Return the pictures (N, H, W, 3) uint8 that a person would see; None if the environment shows none."""
        return None

    def clone(self) -> np.ndarray:
        """Return clones (N,) of the environments, objects to plan from.

        Raises:
            UserError: the environment cannot be cloned.
        """
        raise UserError(
            f"{type(self).__name__} cannot be cloned, so a search cannot plan in its true rules: use an environment "
            "that can be cloned, such as datamodules.environments.emulator.AtariEmulators"
        )

    @abstractmethod
    def close(self) -> None:
        """Free the environments; a second call does nothing."""
