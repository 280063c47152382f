"""Random actions that are held for several steps, so that they do not cancel out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from modules.errors import UserError

LONGEST = 1000
"""Largest number of steps for which `random_actions` holds an action."""


def check_persistence(persistence: float | None) -> None:
    """Raise a UserError unless the zeta distribution with this exponent exists. None is accepted."""
    if persistence is not None and not persistence > 1:
        raise UserError(f"persistence of random play must be more than 1: got {persistence}")


def durations(persistence: float, generator: np.random.Generator, size: int) -> np.ndarray:
    """Draw numbers of steps (size,) int64 for which actions are held: n has the probability n^-persistence / zeta.

    The law is that of epsilon-z-greedy exploration (Dabney et al. 2021, section 3).
    """
    return generator.zipf(persistence, size=size)


def random_actions(num_actions: int, generator: np.random.Generator, persistence: float | None = None) -> Iterator[int]:
    """Yield random actions without end; with `persistence` each is held for a number of steps from `durations`."""
    while True:
        drawn = generator.integers(num_actions, size=16)
        if persistence is not None:
            drawn = drawn.repeat(np.minimum(durations(persistence, generator, 16), LONGEST))
        yield from drawn.tolist()
