"""How actors depart from what they hold best."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from modules.errors import UserError


@dataclass(frozen=True)
class Exploration:
    """Randomness that an actor adds to what it would play.

    Args:
        epsilon: probability of an action that is drawn uniformly instead of the chosen one.
        temperatures: temperatures of the moves that a search draws by visits^(1 / temperature), one for each of as many
            equal parts of the run; 0 plays the best move. A Gumbel search draws by its own noise instead.
    """

    epsilon: float = 0.0
    temperatures: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1:
            raise UserError(f"exploration needs an epsilon from 0 to 1: got {self.epsilon}")
        if not self.temperatures or min(self.temperatures) < 0:
            raise UserError(f"exploration needs temperatures of at least 0: got {list(self.temperatures)}")

    def temperature(self, progress: Fraction) -> float:
        """Return the temperature where so much of the run is done, from 0 to 1."""
        return self.temperatures[min(int(len(self.temperatures) * progress), len(self.temperatures) - 1)]
