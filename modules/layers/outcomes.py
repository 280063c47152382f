"""What an action earned and whether the episode goes on, read off what a network saw and what it paints."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.batch import Batch


class Outcomes(nn.Module):
    """Reward and continuation: the head, its losses, and the balance between what is common and what is rare.

    Hardly any action earns something, and hardly any ends an episode. So that the few are learned, a class of frequency
    f weighs f^-balance in the loss. This moves the optimum from a probability p to one in proportion to p * f^-balance,
    which `forward` takes back: its logits are those of p, and expected rewards are right (the weighted form of logit
    adjustment, Menon et al. 2021).

    Args:
        coarsest: (C, H, W) of the features that are read where they lie.
        finest: (C, H, W) of the features that are looked at closely, then pooled.
        reward_loss: "categorical", a softmax over the signs -1, 0, 1, or "real", squared error, which has no balance.
        balance: 0 lets every row weigh the same, 1 every class.
        width: channels of the close look.
    """

    signs: Tensor
    reward_weights: Tensor
    continuation_weights: Tensor

    def __init__(
        self,
        coarsest: tuple[int, int, int],
        finest: tuple[int, int, int],
        reward_loss: Literal["categorical", "real"],
        balance: float,
        width: int = 32,
    ) -> None:
        super().__init__()
        self.reward_loss = reward_loss
        self.balance = balance
        channels, *shape = finest
        self.look = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.position = nn.Parameter(torch.zeros(width, *(math.ceil(side / 2) for side in shape)))
        self.read = nn.Sequential(
            nn.Linear(math.prod(coarsest) + 2 * width, 128),
            nn.ReLU(),
            nn.Linear(128, 1 + (3 if reward_loss == "categorical" else 1)),
        )
        self.register_buffer("signs", torch.tensor([-1.0, 0.0, 1.0]), persistent=False)
        self.register_buffer("reward_weights", torch.ones(3))
        self.register_buffer("continuation_weights", torch.ones(2))

    def forward(self, coarsest: Tensor, finest: Tensor) -> tuple[Tensor, Tensor]:
        """Map features (B, C, H, W) to the reward's logits (B, 3) or value (B, 1) and the continuation's logit (B,)."""
        seen = F.relu(self.look(finest) + self.position)
        pooled = [coarsest.flatten(1), seen.amax(dim=(2, 3)), seen.mean(dim=(2, 3))]
        read = self.read(torch.cat(pooled, dim=1)).float()
        reward, continuation = read[:, :-1], read[:, -1]
        if self.reward_loss == "categorical":
            reward = reward - self.reward_weights.log()
        return reward, continuation - self._continuation_shift()

    def reward_losses(self, output: Tensor, reward: Tensor) -> Tensor:
        """Return the loss (B,) of what `forward` gave for each raw reward (B,)."""
        if self.reward_loss == "real":
            return (output[:, 0] - reward) ** 2
        return F.cross_entropy(
            output + self.reward_weights.log(), _sign_class(reward), weight=self.reward_weights, reduction="none"
        )

    def continuation_losses(self, logit: Tensor, continuation: Tensor) -> Tensor:
        """Return the loss (B,) of what `forward` gave for each continuation (B,), 0 or 1."""
        weight = self.continuation_weights[continuation.long()]
        shifted = logit + self._continuation_shift()
        return weight * F.binary_cross_entropy_with_logits(shifted, continuation, reduction="none")

    def expected_reward(self, output: Tensor) -> Tensor:
        """Return the expected sign, or the value itself, (B,)."""
        return output.softmax(dim=1) @ self.signs if self.reward_loss == "categorical" else output[:, 0]

    def refit(self, batch: Batch) -> None:
        """Weigh the classes by how often they occur in real rows."""
        executed = ~batch.is_last
        self.reward_weights.copy_(self._weights(_sign_class(batch.reward[executed]), 3))
        self.continuation_weights.copy_(self._weights(batch.continuation[executed].long(), 2))

    def _weights(self, classes: Tensor, num_classes: int) -> Tensor:
        # One row more of each class, for those that did not occur. A row weighs 1 on average.
        counts = torch.bincount(classes, minlength=num_classes) + 1.0
        frequency = counts / counts.sum()
        weights = frequency**-self.balance
        return weights / (frequency * weights).sum()

    def _continuation_shift(self) -> Tensor:
        ends, goes_on = self.continuation_weights.log()
        return goes_on - ends


def _sign_class(reward: Tensor) -> Tensor:
    return reward.sign().long() + 1
