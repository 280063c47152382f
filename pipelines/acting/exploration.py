"""Settings of exploration."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from modules.errors import UserError


@dataclass(frozen=True)
class Exploration:
    """Randomness that an actor adds to its choices.

    Args:
        epsilon: probability that a uniformly drawn action replaces the chosen one.
        temperatures: temperatures at which a search draws moves by visits^(1 / temperature), one for each of equal
            parts of the run; 0 plays the best move. A Gumbel search draws by its own noise instead.
    """

    epsilon: float = 0.0
    temperatures: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1:
            raise UserError(f"exploration needs an epsilon from 0 to 1: got {self.epsilon}")
        if not self.temperatures or min(self.temperatures) < 0:
            raise UserError(f"exploration needs temperatures of at least 0: got {list(self.temperatures)}")

    def temperature(self, progress: Fraction) -> float:
        """Return the temperature at a completed share of the run, from 0 to 1."""
        return self.temperatures[min(int(len(self.temperatures) * progress), len(self.temperatures) - 1)]
