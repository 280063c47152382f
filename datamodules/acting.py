"""The seam between whoever chooses actions and the environments that execute them."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch

from datamodules.environments.environment import Transition, VectorEnvironment


class Moment(NamedTuple):
    """What an actor is told of N environments when an action is due."""

    observation: np.ndarray
    """(N, *observation_shape) single frames or vectors."""
    is_first: np.ndarray
    """(N,) bool: the observation opens an episode."""
    legal_actions: np.ndarray | None = None
    """(N, A) bool; None where all actions are legal."""
    clone: np.ndarray | None = None
    """(N,) moments of the true world, objects to plan from; None unless the actor wants them."""


class Actor:
    """Chooses actions for N environments at once."""

    wants_clone: bool = False
    """Whether the actor plans in the true world, from `Moment.clone`."""

    def act(self, moment: Moment) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return actions (N,) int64 and the extra columns of their rows."""
        raise NotImplementedError

    def follow(self, progress: Fraction) -> None:
        """Adjust whatever follows a schedule to the share of the run's updates that were made."""

    def state_dict(self) -> dict[str, Any]:
        """Return plain data that a checkpoint keeps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""


class Playing:
    """Episodes that are being played in N environments, under next-step autoreset.

    Args:
        environment: plays; its episodes open here.
        stream: number of the stream of episodes, as `VectorEnvironment.reset` takes it.
        state: result of `state_dict`, to go on with the episodes that were running; None opens new ones.
    """

    def __init__(self, environment: VectorEnvironment, stream: int = 0, state: dict[str, Any] | None = None) -> None:
        self.environment = environment
        if state is None:
            self.observation = environment.reset(stream)
            self.is_first = np.ones(environment.num_envs, bool)
            self.closed = np.zeros(environment.num_envs, bool)
            """(N,): the observation closes an episode, and the next action is ignored."""
        else:
            self.observation = environment.load_state_dict(state["environment"])
            self.is_first, self.closed = state["is_first"].numpy().copy(), state["is_last"].numpy().copy()

    def moment(self, actor: Actor) -> Moment:
        """Return what an actor is told now."""
        clone = self.environment.clone() if actor.wants_clone else None
        return Moment(self.observation, self.is_first, self.environment.legal_actions(), clone)

    def step(self, actions: np.ndarray) -> Transition:
        """Execute actions (N,)."""
        after = self.environment.step(actions)
        self.observation, self.is_first = after.observation, self.closed
        self.closed = after.terminated | after.truncated
        return after

    def state_dict(self) -> dict[str, Any] | None:
        """Return how the running episodes stand; None where the environment cannot go on with them."""
        if (environment := self.environment.state_dict()) is None:
            return None
        flags = {"is_first": self.is_first, "is_last": self.closed}
        return {"environment": environment, **{name: torch.from_numpy(flag.copy()) for name, flag in flags.items()}}
