"""Dyna: the policy learns from real and from dreamed rows (Sutton 1991)."""

from __future__ import annotations

from modules.batch import Batch
from modules.errors import UserError
from pipelines.callbacks.dreaming.dreaming import Dreaming, Horizon
from pipelines.dreams.starts import Starts


class Dyna(Dreaming):
    """Mixes dreams into every batch at a set ratio, drawn from all that are young enough.

    Args:
        horizon: steps of a dream.
        ratio: dreamed transitions per real one in every update of the policy.
        every: policy updates between two launches.
        num_dreams: launched at a time.
        capacity: dreams that are kept.
        max_age: updates that the model may have made since a dream for it to be still of use.
        starts: real rows that dreams start from.
    """

    def __init__(
        self,
        horizon: Horizon,
        ratio: float = 1.0,
        every: int = 1,
        num_dreams: int = 32,
        capacity: int = 1024,
        max_age: int = 1000,
        starts: Starts = Starts(),
    ) -> None:
        super().__init__(horizon, num_dreams, capacity, starts)
        if ratio <= 0 or every < 1 or max_age < 0:
            raise UserError(
                f"dyna needs ratio > 0, every of at least 1 and max_age of at least 0: got {ratio}, {every}, {max_age}"
            )
        self.ratio = ratio
        self.every = every
        self.max_age = max_age

    def launch_due(self, update: int) -> bool:
        """At first, whenever the store ran dry, and every so many policy updates."""
        self.store.drop(self.counts["model_updates"] - self.max_age)
        return len(self.store) == 0 or (self.counts["policy_updates"] - 1) % self.every == 0

    def choose(self, real: Batch) -> Batch:
        """Draw dreams, with replacement."""
        transitions = self.ratio * real.shape[0] * (real.shape[1] - 1)
        return self.store.sample(self.generator, max(1, round(transitions / self.store.steps)))
