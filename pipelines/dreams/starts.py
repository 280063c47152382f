"""Start states of dreams, which a model encodes from replayed rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from datamodules.replay_data import ReplayData
from modules.errors import UserError, check_range
from modules.imagination import evaluating
from modules.world_model import WorldModel


@dataclass(frozen=True)
class Starts:
    """Real rows that a model observes before it dreams.

    Args:
        context: number of rows that the model observes before a dream, which starts from the last of these rows.
        episode_starts: number of dreams per batch of dreams that start at the beginning of an episode.
        recent: number of newest rows of every environment that dreams start from; null starts anywhere in the store.
    """

    context: int = 2
    episode_starts: int = 0
    recent: int | None = None

    def __post_init__(self) -> None:
        check_range("starts.context", self.context, 1)
        check_range("starts.episode_starts", self.episode_starts, 0)
        if self.recent is not None and self.recent <= self.context:
            # At most one of two consecutive rows closes an episode, so there is always a start.
            raise UserError(f"starts.recent must be more than the {self.context} rows of context: got {self.recent}")

    def draw(self, data: ReplayData, model: WorldModel, num: int, source: np.random.Generator) -> torch.Tensor:
        """Return states (num, *state_shape) encoded from real rows; the last row of a context never closes an episode.

        Args:
            data: datamodule with the store of real rows.
            model: world model that observes the rows.
            num: number of states.
            source: random generator of the draws.
        """
        wanted, opening = num, min(self.episode_starts, num)
        rows = data.episode_starts(opening, self.context) if opening else None
        chosen = []
        while wanted:
            if rows is None:
                rows = data.sample(2 * wanted, self.context, source=source, recent=self.recent or 0)
            rows = rows.to(model.device)
            with torch.no_grad(), evaluating(model):
                states = model.encode(rows)[:, -1]
            chosen.append(states[~rows.is_last[:, -1]][:wanted])
            wanted -= len(chosen[-1])
            rows = None
        return torch.cat(chosen)
