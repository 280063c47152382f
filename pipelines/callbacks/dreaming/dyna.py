"""Dyna: the policy learns from real and from dreamed rows (Sutton 1991)."""

from __future__ import annotations

from modules.batch import Batch
from modules.errors import UserError
from modules.policies.policy import Policy
from pipelines.callbacks.dreaming.dreaming import Dreaming, Horizon
from pipelines.callbacks.dreaming.foresight import Foresight
from pipelines.dreams.starts import Starts


class Dyna(Dreaming):
    """Adds dreams to every batch of the policy at a fixed ratio to real transitions.

    Dreams are drawn with replacement from the store, which drops those of models that are too old.

    Args:
        horizon: number of steps of a dream, which may change with the updates.
        ratio: number of dreamed transitions per real transition in every update of the policy.
        every: number of policy updates between two launches of dreams.
        num_dreams: number of dreams that are launched at a time.
        capacity: number of dreams that are kept; new dreams replace the oldest.
        max_age: number of model updates after which a dream is dropped.
        starts: real rows that dreams start from.
        foresight: how well the model must foresee rewards; until it does, the policy learns from real rows alone. Null
            launches dreams from the first update on.
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
        foresight: Foresight | None = None,
    ) -> None:
        super().__init__(horizon, num_dreams, capacity, starts, foresight)
        if ratio <= 0 or every < 1 or max_age < 0:
            raise UserError(
                f"dyna needs ratio > 0, every of at least 1 and max_age of at least 0: got {ratio}, {every}, {max_age}"
            )
        self.ratio = ratio
        self.every = every
        self.max_age = max_age

    def launch_due(self, update: int) -> bool:
        """Drop dreams that are too old; return True if none is left, and every `every` policy updates."""
        self.store.drop(self.counts["model_updates"] - self.max_age)
        return len(self.store) == 0 or (self.counts["policy_updates"] - 1) % self.every == 0

    def choose(self, real: Batch, policy: Policy) -> Batch:
        """Draw dreams with replacement, as many as `ratio` asks for."""
        transitions = self.ratio * real.shape[0] * policy.learned_rows(real.shape[1])
        return self.store.sample(self.generator, max(1, round(transitions / self.store.steps)))
