"""Who chooses the actions."""

from __future__ import annotations

from typing import Any

import numpy as np


class RandomActor:
    """Every action with the same probability.

    Args:
        num_actions: A.
        generator: of the draws.
    """

    def __init__(self, num_actions: int, generator: np.random.Generator) -> None:
        self.num_actions = num_actions
        self.generator = generator

    def act(
        self, observations: np.ndarray, is_first: np.ndarray, legal_actions: np.ndarray | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Draw an action (N,) int64 for every environment, among legal_actions (N, A) bool if given."""
        if legal_actions is None:
            return self.generator.integers(self.num_actions, size=len(observations)), {}
        scores = np.where(legal_actions, self.generator.random(legal_actions.shape), -1)
        return scores.argmax(axis=1), {}

    def state_dict(self) -> dict[str, Any]:
        """Return the generator's state."""
        return {"generator": self.generator.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on drawing where `state_dict` was taken."""
        self.generator.bit_generator.state = state["generator"]
