"""Prioritised experience replay: windows are drawn in proportion to their priorities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from datamodules.replay.store import ReplayStore
from modules.errors import UserError


@dataclass(frozen=True)
class Prioritised:
    """Prioritised experience replay (Schaul et al. 2016): window i is drawn with P(i) ~ p_i^alpha.

    Args:
        alpha: exponent of the priorities; 0 draws uniformly, 1 draws in proportion to priority.
        beta: exponent of the importance weights (1 / (N P(i)))^beta, divided by the batch's largest; 1 corrects fully.
        epsilon: constant that is added to every priority, so that every window can be drawn.
    """

    alpha: float = 1.0
    beta: float = 1.0
    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        if not (0 <= self.alpha <= 1 and 0 <= self.beta <= 1 and self.epsilon > 0):
            raise UserError(
                "data.sampling.prioritised needs alpha and beta from 0 to 1 and epsilon above 0: "
                f"got {self.alpha}, {self.beta} and {self.epsilon}"
            )


class Priorities:
    """The priorities of all rows of a store that a training window may start with.

    New rows get the highest priority so far. Priorities are kept in memory and in checkpoints.

    Args:
        store: store whose rows are drawn.
        settings: settings of prioritised replay.
    """

    def __init__(self, store: ReplayStore, settings: Prioritised) -> None:
        self.store, self.settings = store, settings
        self.num_envs = store.select("training")
        # Row r is in slot r % capacity; the values are priorities ** alpha, which are proportional to P(i).
        self._scaled = np.ones((len(self.num_envs), store.capacity), np.float32)
        self._highest, self._known = 1.0, store.oldest

    def draw(
        self, generator: np.random.Generator, batch_size: int, length: int, cross_episodes: bool, recent: int | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw windows, with replacement.

        Returns:
            Environments, first rows and importance weights, (batch_size,) each.

        Raises:
            UserError: the store holds no such window.
        """
        self._learn_of_new_rows()
        oldest = self.store.oldest
        low = max(oldest, self._known - recent) if recent else oldest
        starts = np.arange(low, self._known - length + 1)
        scaled = self._scaled[:, starts % self.store.capacity]
        if not cross_episodes:
            env, start = self.store.windows(length, self.num_envs, cross_episodes)
            keep = start >= low
            within = np.zeros_like(scaled)
            within[env[keep], start[keep] - low] = 1
            scaled *= within
        total = scaled.cumsum(dtype=np.float64)
        num = np.count_nonzero(scaled)
        if num == 0:
            raise UserError(
                f"{self.store.path} has no window of {length} rows to draw: it holds {self._known - low} rows per "
                "environment"
            )
        pick = np.searchsorted(total, generator.random(batch_size) * total[-1], side="right")
        weight = (total[-1] / (num * scaled.reshape(-1)[pick].astype(np.float64))) ** self.settings.beta
        env, column = np.divmod(pick, len(starts))
        return env, starts[column], (weight / weight.max()).astype(np.float32)

    def update(self, env: np.ndarray, row: np.ndarray, priority: np.ndarray) -> None:
        """Set the priorities (N,) of rows; overwritten rows are skipped."""
        assert np.isfinite(priority).all(), "a priority is not finite"
        self._learn_of_new_rows()
        scaled = (priority.astype(np.float64) + self.settings.epsilon) ** self.settings.alpha
        self._highest = max(self._highest, float(scaled.max()))
        kept = row >= self._known - self.store.capacity
        self._scaled[env[kept], row[kept] % self.store.capacity] = scaled[kept]

    def _learn_of_new_rows(self) -> None:
        rows = self.store.rows
        new = np.arange(max(self._known, rows - self.store.capacity), rows)
        self._scaled[:, new % self.store.capacity] = self._highest
        self._known = rows

    def state_dict(self) -> dict[str, Any]:
        """Return the priorities of the valid rows, (num_envs, rows) from row `oldest` on."""
        self._learn_of_new_rows()
        oldest = max(0, self._known - self.store.capacity)
        scaled = self._scaled[:, np.arange(oldest, self._known) % self.store.capacity]
        return {"oldest": oldest, "highest": self._highest, "scaled": torch.from_numpy(scaled)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the priorities of a checkpoint, after the store was cut back to its rows."""
        scaled = state["scaled"].numpy()
        assert len(scaled) == len(self.num_envs)
        self._known = state["oldest"] + scaled.shape[1]
        self._scaled[:, np.arange(state["oldest"], self._known) % self.store.capacity] = scaled
        self._highest = state["highest"]
