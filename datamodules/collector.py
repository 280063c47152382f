"""Steps environments and appends every row to a store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import torch

from datamodules.acting import Actor, Playing
from datamodules.environments.environment import VectorEnvironment


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
        environment: N environments; they fill the store's environments in order.
        store: open for writing. Without a state, rows that it holds already belong to runs that were cut: new episodes
            begin.
        state: result of `state_dict`, to go on with the episodes that were running.
    """

    def __init__(self, environment: VectorEnvironment, store: Rows, state: dict[str, Any] | None = None) -> None:
        assert environment.num_envs == store.num_envs
        self.store = store
        self.returns: list[float] = []
        """Of the episodes that ended since somebody last emptied the list, raw."""
        self.playing = Playing(environment, store.rows, state)
        self._return = np.zeros(environment.num_envs) if state is None else state["return"].numpy().copy()
        self._in_step = False

    def state_dict(self) -> dict[str, Any] | None:
        """Return how the running episodes stand; None where the environment cannot go on with them, or died."""
        if self._in_step or (playing := self.playing.state_dict()) is None:
            return None
        return {**playing, "return": torch.from_numpy(self._return.copy())}

    def running(self) -> list[dict[str, Any]] | None:
        """Return the state as that of all environments: they are one part."""
        return None if (state := self.state_dict()) is None else [state]

    def step(self, actor: Actor) -> None:
        """Let the actor act once in every environment."""
        self._in_step = True  # until the end: the actor may have chosen what was never played
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
