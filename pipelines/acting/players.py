"""Players, which play the environments of a run in this process or in others (see ray_players.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

from datamodules.acting import Actor
from datamodules.collector import Collector


class CollectChunk(NamedTuple):
    """The rows that are played next."""

    actor: str
    """Name of the actor that plays the chunk."""
    rows: int
    """Rows that every environment of the store has after the chunk."""
    progress: Fraction
    """Completed share of the run when the chunk is due, from 0 to 1."""
    real_steps: int
    """Real steps after the prefill, of all ranks together, before the chunk."""


class Players(Protocol):
    """Plays chunks, one after the other."""

    def ask(self, step: int, plan: Callable[[int], list[CollectChunk]]) -> None:
        """Prepare the chunks that are due after update `step`; `plan` returns the chunks due after a later update."""
        ...

    def play(self, chunk: CollectChunk) -> Iterator[int]:
        """Play one chunk; yield the number of new rows per environment as they are stored (for the progress bar)."""
        ...

    def returns(self) -> list[float]:
        """Return the raw returns of the episodes that ended since the last call."""
        ...

    def actor_states(self) -> list[dict[str, Any]]:
        """Return the states of every player's actors, by name."""
        ...


def act_with(actors: dict[str, Actor], chunk: CollectChunk) -> Actor:
    """Return the actor of a chunk, with its schedules set for the chunk."""
    actor = actors[chunk.actor]
    actor.follow(chunk.progress, chunk.real_steps)
    return actor


class LocalPlayers:
    """Plays all environments in this process.

    Args:
        collector: collector of the run's store.
        actors: actors by name.
    """

    def __init__(self, collector: Collector, actors: dict[str, Actor]) -> None:
        self.collector = collector
        self.actors = actors

    def ask(self, step: int, plan: Callable[[int], list[CollectChunk]]) -> None:
        """Do nothing: `play` plays every chunk at once."""

    def play(self, chunk: CollectChunk) -> Iterator[int]:
        """Play one chunk now, row by row."""
        actor = act_with(self.actors, chunk)
        while self.collector.store.rows < chunk.rows:
            self.collector.step(actor)
            yield 1

    def returns(self) -> list[float]:
        """Return the raw returns of the episodes that ended since the last call."""
        found, self.collector.returns = self.collector.returns, []
        return found

    def actor_states(self) -> list[dict[str, Any]]:
        """Return the states of the only player's actors, by name."""
        return [{name: actor.state_dict() for name, actor in self.actors.items()}]
