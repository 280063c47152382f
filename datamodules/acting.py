"""The interface between actors, which choose actions, and environments, which execute them."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch

from datamodules.environments.environment import Transition, VectorEnvironment


class Moment(NamedTuple):
    """What an actor observes of N environments before it chooses actions."""

    observation: np.ndarray
    """(N, *observation_shape) single frames or vectors."""
    is_first: np.ndarray
    """(N,) bool: the observation starts an episode."""
    legal_actions: np.ndarray | None = None
    """(N, A) bool; None where all actions are legal."""
    clone: np.ndarray | None = None
    """(N,) clones of the environments, objects to plan from; None unless the actor wants clones."""


class Actor:
    """Chooses actions for N environments at once."""

    wants_clone: bool = False
    """Whether the actor plans in the true environment, from `Moment.clone`."""

    def act(self, moment: Moment) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return actions (N,) int64, and the extra columns of their rows."""
        raise NotImplementedError

    def follow(self, progress: Fraction, real_steps: int) -> None:
        """Set the actor's schedules.

        Args:
            progress: completed share of the run's updates, from 0 to 1.
            real_steps: real steps after the prefill, of all ranks together.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return plain data for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`."""


class Playing:
    """The running episodes of N environments, under next-step autoreset.

    Args:
        environment: environments to play; the constructor resets or restores them.
        stream: number of the stream of episodes, which is passed to `VectorEnvironment.reset`.
        state: result of `state_dict`, which continues the running episodes; None starts new episodes.
    """

    def __init__(self, environment: VectorEnvironment, stream: int = 0, state: dict[str, Any] | None = None) -> None:
        self.environment = environment
        if state is None:
            self.observation = environment.reset(stream)
            self.is_first = np.ones(environment.num_envs, bool)
            self.closed = np.zeros(environment.num_envs, bool)
            """(N,) bool: the observation ends an episode, and the next action is ignored."""
        else:
            self.observation = environment.load_state_dict(state["environment"])
            self.is_first, self.closed = state["is_first"].numpy().copy(), state["is_last"].numpy().copy()

    def moment(self, actor: Actor) -> Moment:
        """Return the present moment for an actor."""
        clone = self.environment.clone() if actor.wants_clone else None
        return Moment(self.observation, self.is_first, self.environment.legal_actions(), clone)

    def step(self, actions: np.ndarray) -> Transition:
        """Execute actions (N,)."""
        after = self.environment.step(actions)
        self.observation, self.is_first = after.observation, self.closed
        self.closed = after.terminated | after.truncated
        return after

    def state_dict(self) -> dict[str, Any] | None:
        """Return the state of the running episodes; None if the environment cannot save it."""
        if (environment := self.environment.state_dict()) is None:
            return None
        flags = {"is_first": self.is_first, "is_last": self.closed}
        return {"environment": environment, **{name: torch.from_numpy(flag.copy()) for name, flag in flags.items()}}
