"""The vector interface of every real world."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np

from modules.errors import UserError


class Transition(NamedTuple):
    """What one vector step did, under next-step autoreset.

    The step after one that closed an episode ignores the action, earns 0, opens the next episode and never closes it.
    """

    observation: np.ndarray
    """(N, *observation_shape): o_{t+1}, or the first of a new episode where the step before closed one."""
    reward: np.ndarray
    """(N,) float32, raw: what a_t earned."""
    terminated: np.ndarray
    """(N,) bool: a_t ended the episode, and o_{t+1} closes it."""
    truncated: np.ndarray
    """(N,) bool: the episode was cut at o_{t+1}, where a learner bootstraps. Never together with terminated."""


class DeadEnvironmentError(UserError):
    """A world that somebody else wrote raised while it was played: it is of no use any more."""


class VectorEnvironment(ABC):
    """N copies of one real world with discrete actions, stepped together.

    Returned arrays are fresh: no later call writes to them.
    """

    num_envs: int
    observation_shape: tuple[int, ...]
    """(C, H, W) of a single uint8 frame, or (D,) of a float32 vector."""
    num_actions: int
    action_meanings: tuple[str, ...]
    """One name per action."""
    description: dict[str, Any]
    """Plain JSON data, equal to itself after a round trip: what a store records and compares."""

    seeds: np.ndarray
    """(N,) of the episodes that the last `reset` opened."""

    @abstractmethod
    def reset(self, stream: int = 0) -> np.ndarray:
        """Open N episodes and return their first observations (N, *observation_shape).

        Always seeded, by the constructor's seed and a stream: a run that is taken up again opens another stream.
        """

    @abstractmethod
    def step(self, actions: np.ndarray) -> Transition:
        """Execute actions (N,) int64, each in [0, num_actions)."""

    def state_dict(self) -> dict[str, Any] | None:
        """Return plain data from which the present moment can be reached again; None where it cannot."""
        return None

    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        """Go on from the moment where `state_dict` was taken, and return its observations (N, *observation_shape)."""
        raise NotImplementedError

    def legal_actions(self) -> np.ndarray | None:
        """Return which actions (N, A) bool are legal now; None where all always are.

        Every action is legal at the observation that closes an episode: it is ignored.
        """
        return None

    def mover(self) -> np.ndarray | None:
        """Return whose turn it is (N,) int64, players numbered from 0; None where one player plays alone."""
        return None

    def clone(self) -> np.ndarray:
        """Return the present moments (N,), objects from which the rules of this world go on.

        Raises:
            UserError: this world cannot be cloned.
        """
        raise UserError(
            f"{type(self).__name__} cannot be cloned, and nobody can plan in its true rules: play a world that can, "
            "such as datamodules.environments.emulator.AtariEmulators"
        )

    @abstractmethod
    def close(self) -> None:
        """Free the worlds; calling it again does nothing."""
