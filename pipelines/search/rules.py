"""The settings of a search: selection rules, root noise and stopping conditions."""

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
"""Number of visits up to which PUCT looks its logarithm up in a table."""


class Rule(ABC):
    """The rule by which a simulation selects an action."""

    @abstractmethod
    def settings(self) -> dict[str, float]:
        """Return the fields of `compiled.SETTINGS` that the rule sets."""

    def table(self, simulations: int | None) -> np.ndarray:
        """Return the lookup table of the compiled loops, (rows, columns) float64."""
        return np.zeros((1, 1))


@dataclass(frozen=True)
class Uct(Rule):
    """UCT, upper confidence bounds on trees (Kocsis and Szepesvari 2006), which needs no prior.

    Args:
        exploration: weight c of the exploration term in Q + c sqrt(ln N / n).
        normalise: scale Q to [0, 1] by the smallest and largest Q of the "tree" or the "node"; "none" does not scale.
    """

    exploration: float = 2**0.5
    normalise: Literal["tree", "node", "none"] = "tree"

    def __post_init__(self) -> None:
        check_range("Uct.exploration", self.exploration, 0)
        _choose("normalise", self.normalise, NORMALISATIONS)

    def settings(self) -> dict[str, float]:
        """Return the fields of `compiled.SETTINGS` that the rule sets."""
        return {
            "rule": compiled.UCT,
            "exploration": self.exploration,
            "normalise": NORMALISATIONS[self.normalise],
            "epsilon": 1e-8,
        }


@dataclass(frozen=True)
class Puct(Rule):
    """PUCT, MuZero's rule: prior times confidence (Schrittwieser et al. 2020, appendix B).

    Args:
        c1: weight of the prior.
        c2: number of visits after which the weight of the prior grows.
        first_visit: normalised Q of an unvisited action: "zero", which is the worst (MuZero's pseudocode), the mean of
            the "parent", or the "mean" of the parent and the visited siblings (EfficientZero).
        normalise: scale Q to [0, 1] by the smallest and largest Q of the "tree" or the "node"; "none" does not scale.
        epsilon: smallest range of Q that is scaled to [0, 1] in full; smaller ranges are scaled by 1 / epsilon.
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
        """Return the fields of `compiled.SETTINGS` that the rule sets."""
        return {
            "rule": compiled.PUCT,
            "c1": self.c1,
            "c2": self.c2,
            "first_visit": FIRST_VISITS[self.first_visit],
            "normalise": NORMALISATIONS[self.normalise],
            "epsilon": self.epsilon,
        }

    def table(self, simulations: int | None) -> np.ndarray:
        """Return the factor of P / (1 + n), indexed by the visits N of a node."""
        visits = np.arange(min(simulations or TABLED, TABLED) + 2)
        return np.sqrt(visits)[None] * (self.c1 + np.log((visits + self.c2 + 1) / self.c2))


@dataclass(frozen=True)
class Gumbel(Rule):
    """Gumbel MuZero (Danihelka et al. 2022): sequential halving at the root, which needs only two simulations.

    Args:
        considered: number of actions that are drawn without replacement and tried at the root.
        c_visit: constant added to the largest visit count in sigma(q) = (c_visit + largest visit count) c_scale q.
        c_scale: weight of Q relative to the logits: 0.1 in Atari, 1 in board games.
        scale: scale of the noise; 0 plays the best action, for evaluation.
        epsilon: smallest distance between the largest and the smallest Q of a node; below it, differences of Q count
            less than in full. Where rewards are rare, a smaller epsilon amplifies the noise of the values.
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
        """Return the fields of `compiled.SETTINGS` that the rule sets."""
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
    """Return the visit count that a root action needs to be tried, per number m of actions and per simulation.

    Sequential halving has ceil(log2 m) phases of equal length; each phase drops the worse half of the actions.

    Returns:
        (considered + 1, simulations + 1) int32; row m is for m considered actions.
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
    """Dirichlet noise in the prior of the root's legal actions (AlphaGo Zero, methods).

    Args:
        alpha: concentration of the Dirichlet distribution, about 10 / (typical number of legal actions).
        fraction: fraction of the noise in the prior.
    """

    alpha: float = 0.3
    fraction: float = 0.25

    def __post_init__(self) -> None:
        check_range("Dirichlet.alpha", self.alpha, 0, above=True)
        check_range("Dirichlet.fraction", self.fraction, 0, 1)


@dataclass(frozen=True)
class Stop:
    """Stopping conditions of a root's search, which ends at the first that holds.

    Args:
        simulations: largest number of simulations per root; null sets no limit.
        seconds: wall-clock seconds for all roots together; null sets no limit.
        decided: stop when no other action can overtake the most visited one.
        converged: stop when the root's value moved less than this over 32 simulations; null never does.
        proven: stop when the root's exact value is known, which needs the search's `bounds`.
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
