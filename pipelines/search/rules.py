"""How a search chooses among actions, what disturbs it, and when it stops."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np

from modules.errors import UserError, check_range
from pipelines.search import compiled

FIRST_VISITS = {"zero": compiled.ZERO, "parent": compiled.PARENT, "mean": compiled.MEAN}
NORMALISATIONS = {"tree": compiled.TREE, "node": compiled.NODE, "none": compiled.RAW}

TABLED = 4096
"""Visits, beyond which PUCT's logarithm is computed anew."""


class Rule(ABC):
    """How a simulation chooses."""

    @abstractmethod
    def settings(self) -> dict[str, float]:
        """Return what the compiled loops are told."""

    def table(self, simulations: int | None) -> np.ndarray:
        """Return what they look up, (rows, columns) float64."""
        return np.zeros((1, 1))


@dataclass(frozen=True)
class Uct(Rule):
    """Upper confidence bounds on trees (Kocsis and Szepesvari 2006): no prior is needed.

    Args:
        exploration: c of Q + c sqrt(ln N / n).
        normalise: scale Q to [0, 1] by the smallest and largest Q of the "tree", of the "node", or by "none".
    """

    exploration: float = 2**0.5
    normalise: Literal["tree", "node", "none"] = "tree"

    def __post_init__(self) -> None:
        check_range("Uct.exploration", self.exploration, 0)
        _choose("normalise", self.normalise, NORMALISATIONS)

    def settings(self) -> dict[str, float]:
        """Return what the compiled loops are told."""
        return {
            "rule": compiled.UCT,
            "exploration": self.exploration,
            "normalise": NORMALISATIONS[self.normalise],
            "epsilon": 1e-8,
        }


@dataclass(frozen=True)
class Puct(Rule):
    """MuZero's rule: prior times confidence (Schrittwieser et al. 2020, appendix B).

    Args:
        c1: weight of the prior.
        c2: visits after which it grows.
        first_visit: what an action that was never tried is worth: "zero", the worst, as MuZero's pseudocode has it; the
            "parent"'s mean; or the "mean" of parent and siblings that were tried, as EfficientZero.
        normalise: scale Q to [0, 1] by the smallest and largest Q of the "tree", of the "node", or by "none".
        epsilon: least distance of the two, below which differences do not count in full.
    """

    c1: float = 1.25
    c2: float = 19652.0
    first_visit: Literal["zero", "parent", "mean"] = "zero"
    normalise: Literal["tree", "node", "none"] = "tree"
    epsilon: float = 0.01

    def __post_init__(self) -> None:
        check_range("Puct.c1", self.c1, 0)
        check_range("Puct.c2", self.c2, 0, above=True)
        check_range("Puct.epsilon", self.epsilon, 0, above=True)
        _choose("first_visit", self.first_visit, FIRST_VISITS)
        _choose("normalise", self.normalise, NORMALISATIONS)

    def settings(self) -> dict[str, float]:
        """Return what the compiled loops are told."""
        return {
            "rule": compiled.PUCT,
            "c1": self.c1,
            "c2": self.c2,
            "first_visit": FIRST_VISITS[self.first_visit],
            "normalise": NORMALISATIONS[self.normalise],
            "epsilon": self.epsilon,
        }

    def table(self, simulations: int | None) -> np.ndarray:
        """Return what multiplies P / (1 + n), by the visits N of a node."""
        visits = np.arange(min(simulations or TABLED, TABLED) + 2)
        return np.sqrt(visits)[None] * (self.c1 + np.log((visits + self.c2 + 1) / self.c2))


@dataclass(frozen=True)
class Gumbel(Rule):
    """Gumbel MuZero (Danihelka et al. 2022): sequential halving at the root; improves a policy by two simulations.

    Args:
        considered: actions that are drawn without replacement and tried at the root.
        c_visit: c visit of sigma(q) = (c_visit + largest visit count) c_scale q.
        c_scale: weight: how much Q weighs beside the logits: 0.1 in Atari, 1 in board games.
        scale: scale of the noise; 0 plays the best action, for evaluation.
        epsilon: least distance between the largest and the smallest Q of a node, below which differences do not count
            in full. Where rewards are rare, anything less lets the noise of values rule.
    """

    considered: int = 16
    c_visit: float = 50.0
    c_scale: float = 0.1
    scale: float = 1.0
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        if self.considered < 1:
            raise UserError(f"Gumbel must consider at least 1 action: got {self.considered}")
        check_range("Gumbel.c_visit", self.c_visit, 0)
        check_range("Gumbel.c_scale", self.c_scale, 0)
        check_range("Gumbel.scale", self.scale, 0)
        check_range("Gumbel.epsilon", self.epsilon, 0, above=True)

    def settings(self) -> dict[str, float]:
        """Return what the compiled loops are told."""
        return {
            "rule": compiled.GUMBEL,
            "c_visit": self.c_visit,
            "c_scale": self.c_scale,
            "epsilon": self.epsilon,
        }

    def table(self, simulations: int | None) -> np.ndarray:
        """Return the visit counts of `considered_visits`."""
        assert simulations is not None
        return considered_visits(min(self.considered, simulations), simulations).astype(np.float64)


def considered_visits(considered: int, simulations: int) -> np.ndarray:
    """Return which visit count a root action must have to be tried, for m actions and every simulation.

    Sequential halving: ceil(log2 m) phases of equal length, each of which drops the worse half.

    Returns:
        (considered + 1, simulations + 1) int32; row m holds for m considered actions.
    """
    table = np.zeros((considered + 1, simulations + 1), np.int32)
    for m in range(1, considered + 1):
        table[m] = np.arange(simulations + 1)
        if m == 1:
            continue
        phases = int(np.ceil(np.log2(m)))
        sequence: list[int] = []
        visits, left = [0] * m, m
        while len(sequence) <= simulations:
            for _ in range(max(1, int(simulations / (phases * left)))):
                sequence += visits[:left]
                visits[:left] = [count + 1 for count in visits[:left]]
            left = max(2, left // 2)
        table[m] = sequence[: simulations + 1]
    return table


@dataclass(frozen=True)
class Dirichlet:
    """Noise in the prior of the root's legal actions (AlphaGo Zero, methods).

    Args:
        alpha: about 10 / (typical number of legal actions).
        fraction: fraction of the noise in the prior.
    """

    alpha: float = 0.3
    fraction: float = 0.25

    def __post_init__(self) -> None:
        check_range("Dirichlet.alpha", self.alpha, 0, above=True)
        check_range("Dirichlet.fraction", self.fraction, 0, 1)


@dataclass(frozen=True)
class Stop:
    """When the search of a root ends: at whichever holds first.

    Args:
        simulations: at most so many.
        seconds: seconds of wall clock for all roots together.
        decided: no other action can still be visited more often than the one that is ahead.
        converged: the root's value moved less than this over 32 simulations.
        proven: the root's exact value is known; it needs known bounds.
    """

    simulations: int | None = 50
    seconds: float | None = None
    decided: bool = False
    converged: float | None = None
    proven: bool = True

    def __post_init__(self) -> None:
        if self.simulations is None and self.seconds is None:
            raise UserError("a search needs an end: set simulations, seconds or both")
        if self.simulations is not None and self.simulations < 1:
            raise UserError(f"a search needs at least 1 simulation: got {self.simulations}")
        check_range("Stop.seconds", self.seconds, 0, above=True)
        check_range("Stop.converged", self.converged, 0, above=True)


def _choose(name: str, value: str, choices: dict[str, int]) -> None:
    if value not in choices:
        raise UserError(f"unknown {name} {value!r}: expected one of {', '.join(choices)}")
