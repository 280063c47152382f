"""A collector, which steps environments and appends every row to a store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import torch

from datamodules.acting import Actor, Playing
from datamodules.environments.environment import VectorEnvironment


class Rows(Protocol):
    """A store that is open for writing, or an object that replaces it."""

    num_envs: int

    @property
    def rows(self) -> int:
        """Number of rows per environment so far."""
        ...

    @property
    def extras(self) -> Iterable[str]:
        """Names of the extra columns."""
        ...

    def append(self, *row: Any) -> None:
        """Append one row per environment, with the arguments of `ReplayStore.append`."""
        ...


class Collector:
    """Appends one row per environment and vector step, under next-step autoreset.

    Args:
        environment: N environments, which fill the store's environments in order.
        store: store that is open for writing. Without `state` new episodes start after the rows that the store holds.
        state: result of `state_dict`, which continues the running episodes; None starts new episodes.
    """

    def __init__(self, environment: VectorEnvironment, store: Rows, state: dict[str, Any] | None = None) -> None:
        assert environment.num_envs == store.num_envs
        self.store = store
        self.returns: list[float] = []
        """Raw returns of the episodes that ended since the list was last emptied."""
        self.playing = Playing(environment, store.rows, state)
        self._return = np.zeros(environment.num_envs) if state is None else state["return"].numpy().copy()
        self._in_step = False

    def state_dict(self) -> dict[str, Any] | None:
        """Return the state of the running episodes; None if the environment cannot save it, or died."""
        if self._in_step or (playing := self.playing.state_dict()) is None:
            return None
        return {**playing, "return": torch.from_numpy(self._return.copy())}

    def running(self) -> list[dict[str, Any]] | None:
        """Return the state in a list of one entry, since one player plays all environments; None without a state."""
        return None if (state := self.state_dict()) is None else [state]

    def step(self, actor: Actor) -> None:
        """Let the actor act once in every environment."""
        self._in_step = True  # until the end: an exception may leave an action that was chosen but not played
        playing = self.playing
        observation, is_first, is_last = playing.observation, playing.is_first, playing.closed
        actions, extras = actor.act(playing.moment(actor))
        after = playing.step(actions)
        columns = {name: extras[name] for name in self.store.extras}
        self.store.append(observation, actions, after.reward, after.terminated, is_first, is_last, columns)
        self._return += after.reward
        self.returns.extend(self._return[playing.closed].tolist())
        self._return[playing.closed] = 0
        self._in_step = False
