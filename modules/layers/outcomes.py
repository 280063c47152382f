"""Reward and continuation heads on vectors and on decoder features."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.batch import Batch


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
    """The reward and continuation head on the features of a picture.

    The head sees the finest features, since a single pixel often decides. It pools them by maximum, so that one place
    suffices, and by mean. A learned map encodes the position.

    Args:
        channels: channels of the finest features.
        height: height of the finest features.
        width: width of the finest features.
        reward_loss: "categorical", a softmax over the signs -1, 0, 1, or "real", squared error.
        looks: channels of the convolution before the pooling.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        reward_loss: Literal["categorical", "real"] = "categorical",
        looks: int = 32,
    ) -> None:
        super().__init__(2 * looks, reward_loss)
        self.look = nn.Conv2d(channels, looks, 3, stride=2, padding=1)
        self.position = nn.Parameter(torch.zeros(looks, math.ceil(height / 2), math.ceil(width / 2)))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map features (B, C, H, W) to the reward's logits (B, 3) or value (B, 1) and the continuation's logit (B,)."""
        seen = F.relu(self.look(features) + self.position)
        return super().forward(torch.cat([seen.amax(dim=(2, 3)), seen.mean(dim=(2, 3))], dim=1))
