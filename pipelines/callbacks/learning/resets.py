"""The callback that resets the policy's network from time to time, so that it keeps learning at high replay ratios."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from lightning import Callback, LightningModule, Trainer

from datamodules.ranks import generator
from modules.errors import UserError, check_range
from pipelines.callbacks.run import Run


class Resets(Callback):
    """Draws new weights of the policy every `every` updates: shrink and perturb (D'Oro et al. 2023).

    The encoder keeps a share of its weights. The layers after it get new weights, and the optimizer's state of them is
    removed (Schwarzer et al. 2023, section 4). The replay store keeps its rows, so the policy soon recovers. The last
    reset is at least `every` updates before the end, so that the policy has time to recover.

    Args:
        every: number of policy updates between two resets; at most half of the run's policy updates.
        keep: fraction of the encoder's old weights in its weights after a reset; 0 draws new weights, 1 keeps the old.
    """

    debug: ClassVar[dict[str, Any]] = {"every": 1}
    runs_before = ("Collect",)

    def __init__(self, every: int, keep: float = 0.5) -> None:
        check_range("Resets.every", every, 1)
        check_range("Resets.keep", keep, 0, 1)
        self.every, self.keep = every, keep

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the policy updates of the run, and check that there is a reset among them."""
        learner = Run(trainer).learner
        policy, total = learner.require_policy(), trainer.estimated_stepping_batches
        if not policy.can_reset:
            raise UserError(f"Resets needs a policy that can be reset, such as QLearning: got {type(policy).__name__}")
        if math.isinf(total):
            raise UserError("Resets needs the run's length: set trainer.max_steps or trainer.max_epochs")
        self.total = sum(learner.rounds.at(update).policy for update in range(int(total)))
        if 2 * self.every > self.total:
            raise UserError(
                f"Resets.every is {self.every}, but the run has {self.total} policy updates: expected at most half of "
                "them"
            )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Reset the policy when it is due."""
        run = Run(trainer)
        policy = run.learner.require_policy()
        if policy.updates - policy.reset_at < self.every or self.total - policy.updates < self.every:
            return
        # A fixed seed per reset, so that all ranks and resumed runs draw the same weights.
        seed = int(generator(0, f"reset {policy.updates}").integers(2**31))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            policy.reset(self.keep)
        self.forget(trainer.optimizers[0])

    @staticmethod
    def forget(optimizer: torch.optim.Optimizer) -> None:
        """Remove the optimizer's state of the parameters that got new weights."""
        for group in optimizer.param_groups:
            if group.get("renewed"):
                for parameter in group["params"]:
                    optimizer.state.pop(parameter, None)
