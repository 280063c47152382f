"""Ray actors that play the environments of a run, on all cores and machines of the cluster.

Every chunk is requested with its weights, a fixed number of updates ahead. The rows therefore do not depend on the
speed of the players, and the ratio of real steps to updates stays fixed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numba
import numpy as np
import ray
import torch

from datamodules.acting import Actor
from datamodules.collector import Collector
from datamodules.replay_data import ReplayData
from modules.errors import UserError
from modules.learner import Learner
from pipelines.acting.players import CollectChunk, act_with

DEATHS = 3
"""Number of deaths of one player in a row, without a finished chunk, after which the run ends."""
TORCH_RNG = "noise"
"""Key of torch's default generator, which models draw from, among the states of a player's actors."""


class Row(NamedTuple):
    """The arguments of `ReplayStore.append`, (num_envs, ...) each."""

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    is_first: np.ndarray
    is_last: np.ndarray
    extras: dict[str, np.ndarray]

    @classmethod
    def beside(cls, parts: list[Row]) -> Row:
        """Join the environments of several players."""
        extras = {name: np.concatenate([part.extras[name] for part in parts]) for name in parts[0].extras}
        columns = [np.concatenate([part[column] for part in parts]) for column in range(6)]
        return cls._make([*columns, extras])


class Segment(NamedTuple):
    """The rows and returns that a player made for a chunk, and its state afterwards."""

    rows: list[Row]
    returns: list[float]
    running: dict[str, Any] | None
    actors: dict[str, Any]


class PlayerSpec(NamedTuple):
    """Everything that a Ray worker needs to build its actors and environments."""

    module: Learner
    """Copy of the run's learner."""
    actors: dict[str, Actor]
    """Actors by name, which use the copy."""
    data: ReplayData
    num_envs: int
    """Number of environments that the player plays."""
    seed: int
    """Seed of the player's environments."""
    stream: int
    """Stream of the episodes that the player starts, if none are running."""


class Player:
    """A Ray worker: some environments and their actors in a separate process.

    Args:
        spec: parts that the player is made from.
        running: state of the running episodes; None starts new episodes.
        states: states of the actors, by name.
    """

    def __init__(self, spec: PlayerSpec, running: dict[str, Any] | None, states: dict[str, Any]) -> None:
        self.module, self.actors = spec.module, spec.actors
        self.num_envs, self.rows, self.extras = spec.num_envs, spec.stream, spec.data.storage.extras
        self.played: list[Row] = []
        spec.data.limit_threads(1)
        torch.set_num_threads(1)
        numba.set_num_threads(1)
        torch.manual_seed(spec.seed)
        if TORCH_RNG in states:
            torch.set_rng_state(states[TORCH_RNG])
        for name, actor in self.actors.items():
            actor.load_state_dict(states[name])
        self.collector = Collector(spec.data.playing_environment(spec.num_envs, spec.seed), self, running)

    def load(self, weights: dict[str, Any]) -> None:
        """Replace the weights of the actors."""
        self.module.load_state_dict(weights)

    def play(self, chunk: CollectChunk, rows: int) -> Segment:
        """Play `rows` rows of every environment."""
        actor = act_with(self.actors, chunk)
        for _ in range(rows):
            self.collector.step(actor)
        states = {name: actor.state_dict() for name, actor in self.actors.items()} | {TORCH_RNG: torch.get_rng_state()}
        segment = Segment(self.played, self.collector.returns, self.collector.state_dict(), states)
        self.played, self.collector.returns = [], []
        return segment

    def append(self, *row: Any) -> None:
        """Keep a row until it is sent; the player replaces the store for its collector."""
        self.played.append(Row(*row))


class Asked(NamedTuple):
    """A chunk that has been requested."""

    chunk: CollectChunk
    rows: int
    """Number of the chunk's rows per environment."""
    version: int
    """Number of updates that the weights had made."""
    weights: Any
    """Ray reference to the weights."""
    segments: list[Any]
    """Ray references to the segments of all players."""


class RayPlayers:
    """Plays parts of the environments in Ray workers, and appends their rows side by side.

    This process requests the chunks that are due within the next `lag` updates, with the present weights. The players
    play while this process learns. With a lag of 0 it requests the chunks that are due now, with the newest weights:
    a single player then plays the same rows as without Ray. A new player replaces one that dies, and continues from
    the last chunk that was received.

    Args:
        data: datamodule with a store that is open for writing.
        module: learner of the run.
        specs: parts that the players are made from.
        lag: largest number of updates that weights may be behind.
        states: states of every player's actors, by name, if `data.running` continues; None takes the specs' actors.
    """

    def __init__(
        self,
        data: ReplayData,
        module: Learner,
        specs: list[PlayerSpec],
        lag: int,
        states: list[dict[str, Any]] | None = None,
    ) -> None:
        self.store, self.module, self.specs, self.lag = data.store, module, specs, lag
        self._running: list[dict[str, Any] | None] = [None] * len(specs) if data.running is None else [*data.running]
        self._states = states or [{name: actor.state_dict() for name, actor in spec.actors.items()} for spec in specs]
        self._asked: deque[Asked] = deque()
        self._asked_rows = self.store.rows
        self._step = 0
        self.policy_lag = 0
        """Number of updates that the weights of the last appended chunk were behind when the chunk was due."""
        self._next = 0
        self._returns: list[float] = []
        self._deaths = [0] * len(specs)
        self._specs = [ray.put(spec) for spec in specs]
        self._players = [self._player(number) for number in range(len(specs))]

    def _player(self, number: int) -> Any:
        return ray.remote(num_cpus=1)(Player).remote(self._specs[number], self._running[number], self._states[number])

    def ask(self, step: int, plan: Callable[[int], list[CollectChunk]]) -> None:
        """Send the weights and request the next chunks, if it is time to."""
        self._step = step
        if step < self._next:
            return
        self._next = step + max(1, self.lag)
        due = [chunk for later in range(step, step + self.lag + 1) for chunk in plan(later)]
        if not due or due[-1].rows <= self._asked_rows:
            return
        weights = ray.put(_on_cpu(self.module.state_dict()))
        for player in self._players:
            player.load.remote(weights)
        for chunk in due:
            if (rows := chunk.rows - self._asked_rows) > 0:
                segments = [player.play.remote(chunk, rows) for player in self._players]
                self._asked.append(Asked(chunk, rows, step, weights, segments))
                self._asked_rows = chunk.rows

    def play(self, chunk: CollectChunk) -> Iterator[int]:
        """Wait for the rows of a chunk, and append them to the store."""
        while self.store.rows < chunk.rows:
            segments = [self._receive(number) for number in range(len(self.specs))]
            asked = self._asked.popleft()
            for rows in zip(*(segment.rows for segment in segments), strict=True):
                self.store.append(*Row.beside(list(rows)))
            self.policy_lag = self._step - asked.version
            self._running = [segment.running for segment in segments]
            self._states = [segment.actors for segment in segments]
            self._returns += [each for segment in segments for each in segment.returns]
            yield asked.rows

    def _receive(self, number: int) -> Segment:
        """Return a player's segment of the oldest chunk; if the player died, let a new player play it."""
        while True:
            try:
                segment = ray.get(self._asked[0].segments[number])
                self._deaths[number] = 0
                return segment
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayActorError as error:
                self._deaths[number] += 1
                if self._deaths[number] == DEATHS:
                    reason = " ".join(str(error).split())
                    raise UserError(f"Ray actor {number} died {DEATHS} times in a row: {reason[:300]}") from None
                self._replace(number)

    def _replace(self, number: int) -> None:
        """Start a new player, and let it play the chunks that the dead player has not sent."""
        print(f"dreamcade: Ray actor {number} died; another one continues in its place", flush=True)
        self._players[number] = player = self._player(number)
        loaded = None
        for asked in self._asked:
            if asked.weights is not loaded:
                player.load.remote(asked.weights)
                loaded = asked.weights
            asked.segments[number] = player.play.remote(asked.chunk, asked.rows)

    def returns(self) -> list[float]:
        """Return the raw returns of the episodes that ended since the last call."""
        found, self._returns = self._returns, []
        return found

    def running(self) -> list[dict[str, Any]] | None:
        """Return the state of every player's episodes after the store's last row; None if one cannot continue."""
        return None if None in self._running else [state for state in self._running if state is not None]

    def actor_states(self) -> list[dict[str, Any]]:
        """Return the states of every player's actors, by name, after the store's last row."""
        return self._states

    def close(self) -> None:
        """End the players."""
        for player in self._players:
            ray.kill(player)


def _on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in state.items()}
