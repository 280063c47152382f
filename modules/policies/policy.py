"""The contract of every policy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from modules.batch import Batch
from modules.errors import check_range
from modules.layers.returns import reach_weights
from modules.optimization import Optimization
from modules.world_model import Loss, WorldModel


class Policy(nn.Module):
    """Chooses actions from the features of a world model's states, and learns from rows with states.

    Args:
        optimization: learning rate, schedule and weight decay of the policy; its `optimizer` must be the world model's.
        gradient_clip_val: largest norm of the policy's gradient; null does not clip it.
        clip_rewards: learn from rewards clipped to [-1, 1] (Mnih et al. 2015).
    """

    extras: tuple[str, ...] = ()
    """Names of the actor's outputs that the loss needs, such as log_prob and value."""

    imagines = False
    """Whether the policy dreams by itself, from the states of the rows in its batch."""
    differentiates = False
    """Whether the policy needs gradients through the world model."""
    can_reset = False
    """Whether the policy has `reset`, and `reset_at`: the number of updates at the last one."""

    def __init__(
        self,
        optimization: Optimization = Optimization(lr=3e-4),
        gradient_clip_val: float | None = None,
        clip_rewards: bool = False,
    ) -> None:
        super().__init__()
        check_range(f"{type(self).__name__}.gradient_clip_val", gradient_clip_val, 0)
        self.optimization = optimization
        self.gradient_clip_val = gradient_clip_val
        self.clip_rewards = clip_rewards
        self.updates = 0
        """Number of updates so far."""
        self.real_steps = 0
        """Number of real steps after the prefill, of all ranks together; `Collect` sets it for schedules to follow."""

    def build(self, feature_shape: tuple[int, ...], num_actions: int) -> None:
        """Build the networks."""
        raise NotImplementedError

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map features (B, *feature_shape) to the logits (B, A) of the exploring policy and values (B,)."""
        raise NotImplementedError

    def loss(self, batch: Batch, model: WorldModel) -> Loss:
        """Return the loss on rows with states. No gradient reaches the model's parameters."""
        raise NotImplementedError

    def updated(self) -> None:
        """Increment `updates`; called after every optimizer step. Override it for target networks or exploration."""
        self.updates += 1

    def transitions(self, batch: Batch) -> Tensor:
        """Return the number () of transitions that the loss on a batch is a mean of."""
        return reach_weights(batch.continuation, batch.has_successor()).sum()

    def learned_rows(self, sequence_length: int) -> int:
        """Return the number of transitions that the policy learns from in a real window of so many rows."""
        return sequence_length - 1

    def reset(self, keep: float) -> None:
        """Draw fresh weights: the encoder keeps a share `keep` of its old ones, all that follows it begins anew.

        Parameter groups of what begins anew have an entry `renewed`: the optimizer forgets its states for them.
        """
        raise NotImplementedError

    def get_extra_state(self) -> dict[str, int]:
        """Return the state that checkpoints store beside the weights."""
        return {"updates": self.updates, "real_steps": self.real_steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Restore the numbers of updates and of real steps, which schedules depend on."""
        self.updates, self.real_steps = state["updates"], state["real_steps"]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups."""
        return self.optimization.groups(self.parameters())

    def rewards(self, batch: Batch) -> Tensor:
        """Return the rewards (B, T) to learn from."""
        # Clipped, not their signs: dreamed rewards are expectations, hardly ever exactly 0.
        return batch.reward.clamp(-1, 1) if self.clip_rewards else batch.reward

    @staticmethod
    @torch.no_grad()
    def features(batch: Batch, model: WorldModel) -> Tensor:
        """Return the features (B * T, *feature_shape) of a batch's states, row after row."""
        assert batch.state is not None
        return model.features(batch.state.flatten(0, 1))
