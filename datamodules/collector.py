"""Playing: what an actor is told, the loop between actors and environments, and the rows that it leaves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from datamodules.environments.environment import Transition, VectorEnvironment


class Moment(NamedTuple):
    """What an actor is told when it acts, in N environments at once."""

    observation: np.ndarray
    """(N, *observation_shape): single frames, or vectors."""
    is_first: np.ndarray
    """(N,) bool: the observation opens an episode."""
    legal_actions: np.ndarray | None = None
    """(N, A) bool; None where all actions are legal."""
    clone: Callable[[], np.ndarray] | None = None
    """Returns the moments (N,) themselves, for actors that plan in the true rules."""


class Actor(ABC):
    """Chooses actions for N environments at once."""

    @abstractmethod
    def act(self, moment: Moment) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return actions (N,) int64, and the extra columns of their rows."""

    def advance(self, progress: Fraction) -> None:  # noqa: B027
        """Follow the schedules of a run, of which so much is done, from 0 to 1."""

    def state_dict(self) -> dict[str, Any]:
        """Return plain data that a checkpoint keeps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Go on where `state_dict` was taken."""


class Playing:
    """Environments that are played, episode after episode: the one loop between actors and worlds.

    Args:
        environment: N environments under next-step autoreset.
        stream: number of the stream of episodes that it opens.
        state: what `state_dict` returned, to go on with the episodes that were running.
    """

    def __init__(self, environment: VectorEnvironment, stream: int = 0, state: dict[str, Any] | None = None) -> None:
        self.environment = environment
        if state is None:
            self.observation = environment.reset(stream=stream)
            self.is_first = np.ones(environment.num_envs, bool)
            self.is_last = np.zeros(environment.num_envs, bool)
        else:
            self.observation = environment.load_state_dict(state["environment"])
            self.is_first, self.is_last = (state[name].numpy().copy() for name in ("is_first", "is_last"))

    @property
    def moment(self) -> Moment:
        """What an actor is told now."""
        environment = self.environment
        return Moment(self.observation, self.is_first, environment.legal_actions(), environment.clone)

    def step(self, actions: np.ndarray) -> Transition:
        """Execute actions (N,) int64, and return what they did."""
        after = self.environment.step(actions)
        self.observation, self.is_first, self.is_last = (
            after.observation, self.is_last, after.terminated | after.truncated,
        )  # fmt: skip
        return after

    def state_dict(self) -> dict[str, Any] | None:
        """Return how the running episodes stand; None where the environment cannot go on with them."""
        if (environment := self.environment.state_dict()) is None:
            return None
        flags = {"is_first": self.is_first, "is_last": self.is_last}
        return {"environment": environment, **{name: torch.from_numpy(flag.copy()) for name, flag in flags.items()}}


class Rows(Protocol):
    """Where rows go: a store, open for writing."""

    num_envs: int

    @property
    def rows(self) -> int:
        """That every environment has had so far."""
        ...

    @property
    def extras(self) -> Iterable[str]:
        """Names of the extra columns."""
        ...

    def append(self, *row: Any) -> None:
        """Take what `ReplayStore.append` takes."""
        ...


class Collector:
    """Appends one row per environment and vector step to a store.

    Args:
        environment: N environments, which fill the store's in order.
        store: open for writing. Without a state, rows that it holds already belong to runs that were cut: new episodes
            begin.
        state: what `state_dict` returned, to go on with the episodes that were running.
    """

    def __init__(self, environment: VectorEnvironment, store: Rows, state: dict[str, Any] | None = None) -> None:
        assert environment.num_envs == store.num_envs
        self.store = store
        self.playing = Playing(environment, store.rows, state)
        self.returns: list[float] = []
        """Raw returns of the episodes that ended since the list was last emptied."""
        self._return = np.zeros(environment.num_envs) if state is None else state["return"].numpy().copy()
        self._in_step = False

    @property
    def environment(self) -> VectorEnvironment:
        """What is played."""
        return self.playing.environment

    def state_dict(self) -> dict[str, Any] | None:
        """Return how the running episodes stand; None where the environment cannot go on with them, or died."""
        if self._in_step or (state := self.playing.state_dict()) is None:
            return None
        return state | {"return": torch.from_numpy(self._return.copy())}

    def running(self) -> list[dict[str, Any]] | None:
        """Return the state as that of all environments: they are played by one."""
        return None if (state := self.state_dict()) is None else [state]

    def step(self, actor: Actor) -> None:
        """Let the actor act once in every environment."""
        self._in_step = True  # until the end: the actor may have chosen what was never played
        playing = self.playing
        observation, is_first, is_last = playing.observation, playing.is_first, playing.is_last
        actions, extras = actor.act(playing.moment)
        after = playing.step(actions)
        columns = {name: extras[name] for name in self.store.extras}
        self.store.append(observation, actions, after.reward, after.terminated, is_first, is_last, columns)
        self._return += after.reward
        self.returns.extend(self._return[playing.is_last].tolist())
        self._return[playing.is_last] = 0
        self._in_step = False
