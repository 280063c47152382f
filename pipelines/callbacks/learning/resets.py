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
    """Draws fresh weights every `every` updates of the policy: shrink and perturb (D'Oro et al. 2023).

    The encoder keeps a share of its weights. What follows it begins anew, and the optimizer forgets it (Schwarzer et
    al. 2023, section 4). The replay keeps everything, so the policy soon recovers. The last reset has a whole period
    after it, in which to recover.

    Args:
        every: number of policy updates between two resets; at most half of the run's policy updates.
        keep: share of the old weights in the encoder; 0 draws it anew, 1 keeps it.
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
            raise UserError(f"Resets reset a policy such as QLearning: {type(policy).__name__} has no resets")
        if math.isinf(total):
            raise UserError("Resets must know when a run ends: set trainer.max_steps or trainer.max_epochs")
        self.total = sum(learner.rounds.at(update).policy for update in range(int(total)))
        if 2 * self.every > self.total:
            raise UserError(
                f"Resets.every is {self.every}, but the run has {self.total} policy updates: a reset needs as many "
                "before it and after it"
            )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Reset the policy when it is due."""
        run = Run(trainer)
        policy = run.learner.require_policy()
        if policy.updates - policy.reset_at < self.every or self.total - policy.updates < self.every:
            return
        # A seed of its own: every rank draws the same weights, and a resumed run too.
        seed = int(generator(0, f"reset {policy.updates}").integers(2**31))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            policy.reset(self.keep)
        self.forget(trainer.optimizers[0])

    @staticmethod
    def forget(optimizer: torch.optim.Optimizer) -> None:
        """Remove an optimizer's states of the parameters that begin anew."""
        for group in optimizer.param_groups:
            if group.get("renewed"):
                for parameter in group["params"]:
                    optimizer.state.pop(parameter, None)
