"""MBPO: the policy learns from dreams alone (Janner et al. 2019)."""

from __future__ import annotations

from typing import Any

import numpy as np
from lightning import LightningModule, Trainer

from datamodules.ranks import gather, of_rank
from modules.agent import Agent
from modules.batch import Batch
from modules.errors import UserError
from modules.policies.policy import Policy
from pipelines.callbacks.dreaming.dreaming import Dreaming, Horizon
from pipelines.callbacks.dreaming.foresight import Foresight
from pipelines.dreams.starts import Starts


class Mbpo(Dreaming):
    """Launches branched rollouts, and trains the policy on them in minibatches for some epochs before the next launch.

    No real row reaches the policy: the agent needs `policy_learns_from: dream`. With one epoch and one minibatch the
    policy learns on-policy, as REINFORCE requires; PPO allows more. Dreams of an earlier round are dropped, because the
    model has learned since.

    Args:
        horizon: number of steps of a dream, which may change with the updates.
        num_dreams: number of dreams that are launched at a time.
        minibatches: number of minibatches into which the dreams of a launch are split.
        epochs: number of passes over the dreams of a launch before the next launch.
        starts: real rows that dreams start from.
        foresight: how well the model must foresee rewards; until it does, the model learns in the policy's updates.
            Null launches dreams from the first update on.
    """

    def __init__(
        self,
        horizon: Horizon,
        num_dreams: int = 256,
        minibatches: int = 1,
        epochs: int = 1,
        starts: Starts = Starts(),
        foresight: Foresight | None = None,
    ) -> None:
        super().__init__(horizon, num_dreams, num_dreams, starts, foresight)
        if epochs < 1 or not 1 <= minibatches <= num_dreams:
            raise UserError(
                f"mbpo needs epochs of at least 1 and minibatches from 1 to num_dreams: got {epochs} and {minibatches}"
            )
        self.minibatches = minibatches
        self.epochs = epochs
        self.pending: list[np.ndarray] = []
        self.round = -1
        self.left: list[list[list[int]]] | None = None
        """Unused minibatches of every rank, from a checkpoint that is being restored."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the policy learns from dreams alone."""
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
        """Return True when all minibatches are used up."""
        return not self.pending

    def choose(self, real: Batch, policy: Policy) -> Batch:
        """Return the next minibatch."""
        if not self.pending:
            for _ in range(self.epochs):
                order = self.generator.permutation(self.num_dreams)
                self.pending += np.array_split(order, self.minibatches)
        return self.store.gather(self.pending.pop(0))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: dict[str, Batch], batch_idx: int
    ) -> None:
        """Drop the dreams of an earlier round, unless model and policy learn in the same updates."""
        assert isinstance(pl_module, Agent)
        turn = pl_module.turn
        if turn.number != self.round and not pl_module.rounds.together:
            self.round, self.pending = turn.number, []
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def forget(self) -> None:
        """Drop the unused minibatches as well."""
        super().forget()
        self.pending = []

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the base class, the round, and the unused minibatches of every rank."""
        left = gather([minibatch.tolist() for minibatch in self.pending])
        return super().state_dict() | {"round": self.round, "pending": left}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the round, and keep the unused minibatches until the run starts."""
        super().load_state_dict(state_dict)
        self.round, self.left = state_dict["round"], state_dict["pending"]
