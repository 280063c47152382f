"""MBPO: the policy learns from dreams alone (Janner et al. 2019)."""

from __future__ import annotations

from typing import Any

import numpy as np
from lightning import LightningModule, Trainer

from datamodules.ranks import gather, of_rank
from modules.agent import Agent
from modules.batch import Batch
from modules.errors import UserError
from pipelines.callbacks.dreaming.dreaming import Dreaming, Horizon
from pipelines.dreams.starts import Starts


class Mbpo(Dreaming):
    """Launches branched rollouts, goes through them `epochs` times in minibatches, and launches the next.

    No real row reaches the policy: the agent must say `policy_learns_from: dream`. With one epoch of one minibatch the
    policy is always the one that dreamed, as REINFORCE needs it; PPO may take more. Dreams of an earlier round are
    dropped: the model has learned since.

    Args:
        horizon: steps of a dream.
        num_dreams: launched at a time.
        minibatches: number of minibatches that dreams are split into.
        epochs: how often they are gone through before the next are launched.
        starts: real rows that dreams start from.
    """

    def __init__(
        self,
        horizon: Horizon,
        num_dreams: int = 256,
        minibatches: int = 1,
        epochs: int = 1,
        starts: Starts = Starts(),
    ) -> None:
        super().__init__(horizon, num_dreams, num_dreams, starts)
        if epochs < 1 or not 1 <= minibatches <= num_dreams:
            raise UserError(
                f"mbpo needs epochs of at least 1 and minibatches from 1 to num_dreams: got {epochs} and {minibatches}"
            )
        self.minibatches = minibatches
        self.epochs = epochs
        self.pending: list[np.ndarray] = []
        self.round = -1
        self.left: list[list[list[int]]] | None = None
        """Every rank's minibatches in the checkpoint that the run goes on from."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the policy keeps away from real rows."""
        super().on_fit_start(trainer, pl_module)
        assert isinstance(pl_module, Agent)
        if pl_module.policy_learns_from != "dream":
            raise UserError(
                f"in MBPO the policy learns from dreams alone: set model.policy_learns_from to dream, "
                f"not {pl_module.policy_learns_from}"
            )
        if self.left is not None:
            self.pending = [np.array(minibatch) for minibatch in of_rank(self.left, trainer.global_rank)]
            self.left = None

    def launch_due(self, update: int) -> bool:
        """When all minibatches were used, or their round is over."""
        return not self.pending

    def choose(self, real: Batch) -> Batch:
        """Take the next minibatch."""
        if not self.pending:
            for _ in range(self.epochs):
                order = self.generator.permutation(self.num_dreams)
                self.pending += np.array_split(order, self.minibatches)
        return self.store.gather(self.pending.pop(0))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: dict[str, Batch], batch_idx: int
    ) -> None:
        """Drop the dreams of an earlier round where the model learns in rounds of its own."""
        assert isinstance(pl_module, Agent)
        turn = pl_module.turn
        if turn.number != self.round and not pl_module.rounds.together:
            self.round, self.pending = turn.number, []
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def state_dict(self) -> dict[str, Any]:
        """Keep as well what is left of the dreams."""
        left = gather([minibatch.tolist() for minibatch in self.pending])
        return super().state_dict() | {"round": self.round, "pending": left}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in the middle of the dreams."""
        super().load_state_dict(state_dict)
        self.round, self.left = state_dict["round"], state_dict["pending"]
