"""The contract of every policy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from modules.batch import Batch
from modules.errors import check_range
from modules.world_model import Loss, WorldModel


class Policy(nn.Module):
    """Chooses actions by the features that a world model makes of its state, and learns from rows that have states.

    Args:
        lr: learning rate of AdamW.
        gradient_clip_val: largest norm of the policy's gradient; null does not clip it.
        clip_rewards: learn from rewards clipped to [-1, 1], as Mnih et al. 2015.
    """

    extras: tuple[str, ...] = ()
    """Columns that the policy learns from and its actor leaves beside its actions: log_prob, value."""

    imagines = False
    """It dreams by itself, from the states of the rows that it is given."""
    differentiates = False
    """It needs gradients through the world model."""

    def __init__(self, lr: float = 3e-4, gradient_clip_val: float | None = None, clip_rewards: bool = False) -> None:
        super().__init__()
        check_range(f"{type(self).__name__}.lr", lr, 0)
        check_range(f"{type(self).__name__}.gradient_clip_val", gradient_clip_val, 0)
        self.lr = lr
        self.gradient_clip_val = gradient_clip_val
        self.clip_rewards = clip_rewards
        self.updates = 0
        """That it has learned from."""

    def build(self, feature_shape: tuple[int, ...], num_actions: int) -> None:
        """Make the networks."""
        raise NotImplementedError

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map features (B, *feature_shape) to the logits (B, A) that it explores by, and values (B,)."""
        raise NotImplementedError

    def loss(self, batch: Batch, model: WorldModel) -> Loss:
        """Return the loss on rows with states. No gradient reaches the model's parameters."""
        raise NotImplementedError

    def updated(self) -> None:
        """Follow an optimizer step: target networks, exploration."""
        self.updates += 1

    def get_extra_state(self) -> dict[str, int]:
        """Return what the checkpoint keeps beside the weights."""
        return {"updates": self.updates}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Go on with the schedules where they stopped."""
        self.updates = state["updates"]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": self.lr, "weight_decay": 0.0}]

    def rewards(self, batch: Batch) -> Tensor:
        """Return the rewards (B, T) to learn from."""
        # Not their signs: a dream's are expectations, which are hardly ever 0.
        return batch.reward.clamp(-1, 1) if self.clip_rewards else batch.reward

    @staticmethod
    @torch.no_grad()
    def features(batch: Batch, model: WorldModel) -> Tensor:
        """Return the features (B * T, *feature_shape) of a batch's states, row after row."""
        assert batch.state is not None
        return model.features(batch.state.flatten(0, 1))
