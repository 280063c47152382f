"""Steps environments and appends every row to a store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import torch

from datamodules.environments.environment import VectorEnvironment


class Actor(Protocol):
    """Chooses actions for N environments at once."""

    def act(
        self, observations: np.ndarray, is_first: np.ndarray, legal_actions: np.ndarray | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Map single frames (N, *observation_shape) to actions (N,) int64 and the extra columns of their rows."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return plain data that a checkpoint keeps."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        ...


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
    """One row per environment and vector step, under next-step autoreset.

    Args:
        environment: its N environments fill the store's environments in order.
        store: open for writing. Without a state, rows that it holds already belong to runs that were cut: new episodes
            begin.
        state: of `state_dict`, to go on with the episodes that were running.
    """

    def __init__(self, environment: VectorEnvironment, store: Rows, state: dict[str, Any] | None = None) -> None:
        assert environment.num_envs == store.num_envs
        self.environment = environment
        self.store = store
        self.returns: list[float] = []
        """Of the episodes that ended since somebody last emptied the list, raw."""
        if state is None:
            self.observation = environment.reset(stream=store.rows)
            self.is_first = np.ones(environment.num_envs, bool)
            self.is_last = np.zeros(environment.num_envs, bool)
            self._return = np.zeros(environment.num_envs)
        else:
            self.observation = environment.load_state_dict(state["environment"])
            self.is_first, self.is_last = state["is_first"].numpy().copy(), state["is_last"].numpy().copy()
            self._return = state["return"].numpy().copy()
        self._in_step = False

    def state_dict(self) -> dict[str, Any] | None:
        """Return how the running episodes stand; None where the environment cannot go on with them, or died."""
        if self._in_step or (environment := self.environment.state_dict()) is None:
            return None
        kept = {"is_first": self.is_first, "is_last": self.is_last, "return": self._return}
        return {"environment": environment, **{name: torch.from_numpy(value.copy()) for name, value in kept.items()}}

    def running(self) -> list[dict[str, Any]] | None:
        """Return the state as that of all environments: they are one part."""
        return None if (state := self.state_dict()) is None else [state]

    def step(self, actor: Actor) -> None:
        """Let the actor act once in every environment."""
        self._in_step = True  # until the end: the actor may have chosen what was never played
        actions, extras = actor.act(self.observation, self.is_first)
        after = self.environment.step(actions)
        columns = {name: extras[name] for name in self.store.extras}
        self.store.append(
            self.observation, actions, after.reward, after.terminated, self.is_first, self.is_last, columns
        )
        self._return += after.reward
        closed = after.terminated | after.truncated
        self.returns.extend(self._return[closed].tolist())
        self._return[closed] = 0
        self.observation, self.is_first, self.is_last = after.observation, self.is_last, closed
        self._in_step = False
