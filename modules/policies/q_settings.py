"""Settings of Q-learning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from modules.errors import UserError, check_range


@dataclass(frozen=True)
class Anneal:
    """Initial n-step and discount of targets, which change exponentially to their final values.

    The change begins at the start of training and at each reset. BBF begins with many steps and a low discount, which
    learn fast but with bias (Schwarzer et al. 2023, section 4).

    Args:
        n_step: initial number of rewards that a target sums.
        discount: initial discount factor.
        updates: number of policy updates until the final values are reached.
    """

    n_step: int = 10
    discount: float = 0.97
    updates: int = 10_000

    def __post_init__(self) -> None:
        check_range("targets.anneal.n_step", self.n_step, 1)
        check_range("targets.anneal.discount", self.discount, 0, 1)
        check_range("targets.anneal.updates", self.updates, 1)


@dataclass(frozen=True)
class Targets:
    """Settings of the targets that action values learn.

    Args:
        n_step: number of rewards that a target sums before it bootstraps.
        discount: discount factor gamma.
        rows: rows of a window that are learned from: "all", whose targets sum fewer rewards near the end of the window,
            or "first", whose target always sums n_step rewards of its episode, so that each window is one transition.
            Of dreams, which are short, all rows are learned from.
        double: choose the next action by the online network (van Hasselt et al. 2016).
        anneal: initial values of n_step and discount, which change to the values above; null keeps both constant.
    """

    n_step: int = 1
    discount: float = 0.99
    rows: Literal["all", "first"] = "all"
    double: bool = True
    anneal: Anneal | None = None

    def __post_init__(self) -> None:
        check_range("targets.n_step", self.n_step, 1)
        check_range("targets.discount", self.discount, 0, 1)
        if self.anneal is not None and max(self.discount, self.anneal.discount) == 1:
            raise UserError("targets.anneal changes 1 - discount by a factor: both discounts must be less than 1")

    def at(self, updates: int) -> tuple[int, float]:
        """Return n_step and discount after a number of updates since the start or the last reset.

        n and 1 - gamma follow straight lines in their logarithms.
        """
        if self.anneal is None or updates >= self.anneal.updates:
            return self.n_step, self.discount
        share = updates / self.anneal.updates
        n_step = _between(self.anneal.n_step, self.n_step, share)
        return round(n_step), 1 - _between(1 - self.anneal.discount, 1 - self.discount, share)

    @property
    def longest(self) -> int:
        """The largest number of rewards that a target sums."""
        return max(self.n_step, 1 if self.anneal is None else self.anneal.n_step)


def _between(start: float, end: float, share: float) -> float:
    return math.exp((1 - share) * math.log(start) + share * math.log(end))


@dataclass(frozen=True)
class TargetNetwork:
    """The delayed copy of the network that bootstraps.

    Args:
        rate: fraction by which the target network moves to the online one; 1 copies it.
        every: number of updates between two moves of the target network.
        acts: choose actions by the target network, which is an average over many updates and acts more steadily
            (Schwarzer et al. 2023, section 4); false chooses them by the online network.
    """

    rate: float = 0.005
    every: int = 1
    acts: bool = False

    def __post_init__(self) -> None:
        check_range("target_network.rate", self.rate, 0, 1)
        check_range("target_network.every", self.every, 1)


@dataclass(frozen=True)
class Epsilon:
    """The probability of a random action, which falls linearly with the real steps that are played.

    Args:
        start: probability of a random action during the prefill.
        end: probability of a random action after `steps` real steps.
        steps: number of real steps after the prefill, of all ranks together, over which the probability falls.
    """

    start: float = 1.0
    end: float = 0.05
    steps: int = 2_500

    def __post_init__(self) -> None:
        check_range("epsilon.start", self.start, 0, 1)
        check_range("epsilon.end", self.end, 0, 1)
        check_range("epsilon.steps", self.steps, 0)

    def at(self, real_steps: int) -> float:
        """Return the probability after a number of real steps since the prefill."""
        share = min(1.0, real_steps / self.steps) if self.steps else 1.0
        return self.start + share * (self.end - self.start)


@dataclass(frozen=True)
class Distribution:
    """A categorical distribution of returns for each action (C51: Bellemare et al. 2017).

    Args:
        atoms: number of atoms, evenly spaced returns that have a probability each; 51 in the paper.
        low: return of the lowest atom.
        high: return of the highest atom.
    """

    atoms: int = 51
    low: float = -10.0
    high: float = 10.0

    def __post_init__(self) -> None:
        check_range("distribution.atoms", self.atoms, 2)
        check_range("distribution.low", self.low)
        check_range("distribution.high", self.high, self.low, above=True)
