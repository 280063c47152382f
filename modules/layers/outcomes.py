"""Reward and continuation heads on vectors and on pictures."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.batch import Batch
from modules.layers.unet import Injection

GRID = 8
"""Largest side of the grid that the head of `Outcomes` sees."""


class VectorOutcomes(nn.Module):
    """The reward and continuation head on a vector, and its losses.

    Args:
        size: length of the vector.
        reward_loss: "categorical", a softmax over the signs -1, 0, 1, or "real", squared error.
    """

    signs: Tensor
    offset: Tensor

    def __init__(self, size: int, reward_loss: Literal["categorical", "real"] = "categorical") -> None:
        super().__init__()
        self.reward_loss = reward_loss
        self.hidden = nn.Linear(size, 128)
        self.last = nn.Linear(128, 1 + (3 if reward_loss == "categorical" else 1))
        self.register_buffer("signs", torch.tensor([-1.0, 0.0, 1.0]), persistent=False)
        # A buffer, not the last layer's bias: ranks that see different rows would start with different parameters.
        self.register_buffer("offset", torch.zeros(self.last.out_features))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map vectors (B, D) to the reward's logits (B, 3) or value (B, 1) and the continuation's logit (B,)."""
        outcomes = self.last(F.relu(self.hidden(features))).float() + self.offset
        return outcomes[:, :-1], outcomes[:, -1]

    def reward_losses(self, output: Tensor, reward: Tensor) -> Tensor:
        """Return the losses (B,) of the reward output of `forward` for raw rewards (B,)."""
        if self.reward_loss == "categorical":
            return F.cross_entropy(output, reward.sign().long() + 1, reduction="none")
        return (output[:, 0] - reward) ** 2

    def continuation_losses(self, logit: Tensor, continuation: Tensor) -> Tensor:
        """Return the losses (B,) of the continuation logits of `forward` for continuations (B,), 0 or 1."""
        return F.binary_cross_entropy_with_logits(logit, continuation, reduction="none")

    def target(self, reward: Tensor) -> Tensor:
        """Return raw rewards (...) as the head predicts them: their signs (categorical), or as they are (real)."""
        return reward.sign() if self.reward_loss == "categorical" else reward

    def expected_reward(self, output: Tensor) -> Tensor:
        """Return the expected sign (categorical) or the predicted value (real) of the reward, (B,)."""
        return (output.softmax(dim=1) * self.signs).sum(dim=1) if self.reward_loss == "categorical" else output[:, 0]

    def start(self, batch: Batch) -> None:
        """Set the output offsets of an untrained head to the frequencies, or the mean reward, of real rows.

        Without this start the first updates learn only that rewards and ends are rare, which drowns their signal (Lin
        et al. 2017, *Focal Loss for Dense Object Detection*, section 3.3).
        """
        executed = ~batch.is_last
        reward, continuation = batch.reward[executed], batch.continuation[executed]
        # One pseudo-count per class, for classes that did not occur.
        ends, goes_on = torch.bincount(continuation.long(), minlength=2) + 1.0
        if self.reward_loss == "categorical":
            counts = torch.bincount(reward.sign().long() + 1, minlength=3) + 1.0
            self.offset[:-1] = (counts / counts.sum()).log()
        else:
            self.offset[:-1] = reward.mean()
        self.offset[-1] = (goes_on / ends).log()


class Outcomes(VectorOutcomes):
    """A network that reads reward and continuation off a transition, from its pictures and from what painted the last.

    No gradient reaches the network that paints: that of rare rewards would be lost among that of all pixels. The first
    layer sees squares of pixels of all pictures together, and so what moves between them. Beside them lie the features
    that the squares of the last picture were painted from. Strided convolutions follow, down to a grid of at most GRID
    x GRID places, none of which is pooled away: where something happens decides what it earns.

    Args:
        channels: channels of all pictures together.
        painted: shape (C, H', W') of the features; a square of pixels is that of one of the H' W' places.
        patch: side of the squares.
        conditions: length of a condition, such as the weights of actions.
        reward_loss: "categorical", a softmax over the signs -1, 0, 1, or "real", squared error.
        looks: channels of the first layer; the others have twice as many.
    """

    def __init__(
        self,
        channels: int,
        painted: tuple[int, int, int],
        patch: int,
        conditions: int,
        reward_loss: Literal["categorical", "real"] = "categorical",
        looks: int = 32,
    ) -> None:
        features, *sides = painted
        halvings = max(1, math.ceil(math.log2(max(sides) / GRID)))
        grid = [-(-side // 2**halvings) for side in sides]
        super().__init__(2 * looks * math.prod(grid) + conditions, reward_loss)
        self.patch, self.sides = patch, sides
        self.stem = nn.Conv2d(channels, looks, patch, stride=patch)
        self.injection = Injection(conditions, looks + features)
        widths = [looks + features, *halvings * [2 * looks]]
        self.halvings = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))

    def forward(self, pictures: Tensor, painted: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Map pictures (B, channels, H, W) in [0, 1], features (B, C, H', W') and conditions to what the head says.

        Returns:
            The reward's logits (B, 3) or value (B, 1), and the continuation's logit (B,).
        """
        height, width = pictures.shape[-2:]
        rest = (self.sides[1] * self.patch - width, self.sides[0] * self.patch - height)
        squares = F.relu(self.stem(F.pad(pictures, (0, rest[0], 0, rest[1]))))
        x = self.injection(torch.cat([squares, painted.detach()], dim=1), condition)
        for halving in self.halvings:
            x = F.relu(halving(x))
        return super().forward(torch.cat([x.flatten(1), condition], dim=1))
