"""Exploration: the randomness that actors add to their choices."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from modules.errors import UserError
from pipelines.search.random_actions import check_persistence, durations


@dataclass(frozen=True)
class Exploration:
    """Randomness that an actor adds to its choices.

    Args:
        epsilon: probability that a uniformly drawn action replaces the chosen one.
        persistence: exponent mu of epsilon-z-greedy exploration (Dabney et al. 2021): a random action is held for n
            steps with a probability proportional to n^-mu, so that actions do not cancel out. Null draws a new action
            at every step.
        temperatures: temperatures at which a search draws moves by visits^(1 / temperature), one for each of equal
            parts of the run; 0 plays the best move. A Gumbel search draws by its own noise instead.
    """

    epsilon: float = 0.0
    persistence: float | None = None
    temperatures: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1:
            raise UserError(f"exploration needs an epsilon from 0 to 1: got {self.epsilon}")
        check_persistence(self.persistence)
        if not self.temperatures or min(self.temperatures) < 0:
            raise UserError(f"exploration needs temperatures of at least 0: got {list(self.temperatures)}")

    def temperature(self, progress: Fraction) -> float:
        """Return the temperature at a completed share of the run, from 0 to 1."""
        return self.temperatures[min(int(len(self.temperatures) * progress), len(self.temperatures) - 1)]


class Explorer:
    """Replaces the chosen actions of N environments by random ones, and holds these.

    Args:
        exploration: settings of exploration.
        generator: generator of the draws.
    """

    def __init__(self, exploration: Exploration, generator: np.random.Generator) -> None:
        self.epsilon, self.persistence = exploration.epsilon, exploration.persistence
        self.generator = generator
        self.held = np.zeros(0, np.int64)
        """(N,): the last random actions; empty before the first call."""
        self.left = np.zeros(0, np.int64)
        """(N,): numbers of steps for which the actions are still held."""

    def forget(self, is_first: np.ndarray) -> None:
        """End the holds of environments (N,) where an episode starts."""
        if len(self.left) == len(is_first):
            self.left = np.where(is_first, 0, self.left)

    def explore(self, chosen: np.ndarray, num_actions: int, legal_actions: np.ndarray | None) -> np.ndarray:
        """Replace chosen actions (N,) by random ones with probability epsilon, and return the actions to play (N,)."""
        if not self.epsilon:
            return chosen
        begins = self.generator.random(len(chosen)) < self.epsilon
        scores = self.generator.random((len(chosen), num_actions))
        return self.hold(chosen, best(scores, legal_actions), begins, legal_actions)

    def hold(
        self, chosen: np.ndarray, drawn: np.ndarray, begins: np.ndarray, legal_actions: np.ndarray | None
    ) -> np.ndarray:
        """Return drawn actions where they begin, the held ones where they continue, and the chosen ones elsewhere.

        Args:
            chosen: actions (N,) without exploration.
            drawn: random actions (N,).
            begins: (N,) bool: a random action begins unless another one is still held.
            legal_actions: (N, A) bool; a hold ends where its action is not legal. None allows all actions.

        Returns:
            The actions (N,) to play.
        """
        if self.persistence is None:
            return np.where(begins, drawn, chosen)
        if len(self.left) != len(chosen):
            self.held, self.left = drawn, np.zeros_like(drawn)
        if legal_actions is not None:
            self.left = np.where(legal_actions[np.arange(len(chosen)), self.held], self.left, 0)
        begins = begins & (self.left == 0)
        self.held = np.where(begins, drawn, self.held)
        self.left = np.where(begins, durations(self.persistence, self.generator, len(chosen)), self.left)
        holding = self.left > 0
        self.left = self.left - holding
        return np.where(holding, self.held, chosen)

    def state_dict(self) -> dict[str, Any]:
        """Return the held actions."""
        return {"held": torch.from_numpy(self.held.copy()), "left": torch.from_numpy(self.left.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`; a state without held actions is of new episodes."""
        if "held" in state:
            self.held, self.left = state["held"].numpy().copy(), state["left"].numpy().copy()


def best(scores: np.ndarray, legal_actions: np.ndarray | None) -> np.ndarray:
    """Return the actions (N,) of the highest scores (N, A) among the legal ones (N, A); None allows all actions."""
    if legal_actions is not None:
        scores = np.where(legal_actions, scores, -np.inf)
    return scores.argmax(axis=1)
