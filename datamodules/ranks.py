"""Seeds, generators and states of the processes of a distributed run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch.distributed

T = TypeVar("T")


def run_seed() -> int:
    """Return the run's `seed_everything`."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def generator(rank: int, purpose: str, seed: int | None = None) -> np.random.Generator:
    """Return a separate NumPy generator for a rank and a purpose; `seed` None takes the run's seed."""
    return np.random.default_rng([run_seed() if seed is None else seed, rank, *purpose.encode()])


class RankGenerator:
    """A callback's NumPy generator on this rank; a checkpoint keeps every rank's.

    Args:
        purpose: name that selects the seed of the generator.
    """

    def __init__(self, purpose: str) -> None:
        self.purpose = purpose
        self.generator: np.random.Generator | None = None
        self._restored: list[dict[str, Any] | None] = [None]

    def start(self, rank: int) -> np.random.Generator:
        """Return the generator of this rank, in the state of the checkpoint if there is one."""
        self.generator = generator(rank, self.purpose)
        restored = of_rank(self._restored, rank)
        if restored is not None:
            self.generator.bit_generator.state = restored
        return self.generator

    def state_dict(self) -> list[dict[str, Any] | None]:
        """Return the states of every rank's generator."""
        return gather(None if self.generator is None else dict(self.generator.bit_generator.state))

    def load_state_dict(self, states: list[dict[str, Any] | None]) -> None:
        """Remember the states of the generators until the run starts."""
        self._restored = states


def of_rank(states: Sequence[T], rank: int) -> T:
    """Return one rank's state out of the states that `gather` returned; fewer ranks than now are allowed."""
    return states[rank % len(states)]


def gather(state: Any) -> list[Any]:
    """Return the states of all ranks in order, on every rank; only the first rank writes checkpoints."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [state]
    states = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, state)
    return states
