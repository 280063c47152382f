"""Who plays the environments of a run: this process, or others (see ray_players.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

from datamodules.acting import Actor
from datamodules.collector import Collector


class CollectChunk(NamedTuple):
    """What is to be played next."""

    actor: str
    """Who plays it, by name."""
    rows: int
    """That every environment of the store has afterwards."""
    progress: Fraction
    """How much of the run is done then, from 0 to 1."""


class Players(Protocol):
    """Plays pieces, one after the other."""

    def ask(self, step: int, plan: Callable[[int], list[CollectChunk]]) -> None:
        """Prepare what is due after the update `step`; `plan` tells what will be due after any later one."""
        ...

    def play(self, chunk: CollectChunk) -> Iterator[int]:
        """Append a piece to the store, and yield how many rows of every environment it has grown by now and then."""
        ...

    def returns(self) -> list[float]:
        """Return those of the episodes that ended since this was asked last, raw."""
        ...

    def actor_states(self) -> list[dict[str, Any]]:
        """Return the states of every player's actors, by name."""
        ...


def act_with(actors: dict[str, Actor], chunk: CollectChunk) -> Actor:
    """Return who plays a chunk, as far on with its schedules as the run is then."""
    actor = actors[chunk.actor]
    actor.follow(chunk.progress)
    return actor


class LocalPlayers:
    """This process plays all environments.

    Args:
        collector: collector of the run's store.
        actors: by name.
    """

    def __init__(self, collector: Collector, actors: dict[str, Actor]) -> None:
        self.collector = collector
        self.actors = actors

    def ask(self, step: int, plan: Callable[[int], list[CollectChunk]]) -> None:
        """Nothing is prepared."""

    def play(self, chunk: CollectChunk) -> Iterator[int]:
        """Play it now."""
        actor = act_with(self.actors, chunk)
        while self.collector.store.rows < chunk.rows:
            self.collector.step(actor)
            yield 1

    def returns(self) -> list[float]:
        """Return those of the episodes that ended since this was asked last, raw."""
        found, self.collector.returns = self.collector.returns, []
        return found

    def actor_states(self) -> list[dict[str, Any]]:
        """Return those of the one player, by name."""
        return [{name: actor.state_dict() for name, actor in self.actors.items()}]
