"""A UNet that predicts a picture and an outcome from a picture and an action."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class UNetSize:
    """How large a UNet is."""

    patch: int
    """Side of the squares of pixels that are folded into channels first, and unfolded last; 1 in SimPLe."""
    channels: tuple[int, ...]
    """At each resolution, finest first; every next one has half the height and width."""
    dropout: float = 0.0
    """Before every convolution that changes the resolution."""
    residual_dropout: float = 0.0
    """At the coarsest resolution."""


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of every pixel."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ActionInjection(nn.Module):
    """x * sigmoid(W1 a) + W2 a: one gain and one shift per channel (SimPLe's "multi-additive")."""

    def __init__(self, num_actions: int, channels: int) -> None:
        super().__init__()
        self.gain = nn.Linear(num_actions, channels)
        self.shift = nn.Linear(num_actions, channels)

    def forward(self, x: Tensor, action: Tensor) -> Tensor:
        """Inject action weights (B, A) into x (B, C, H, W)."""
        return x * self.gain(action).sigmoid()[:, :, None, None] + self.shift(action)[:, :, None, None]


class Down(nn.Module):
    """Halve height and width, rounding up."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.conv = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)
        self.norm = ChannelNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, ceil(H / 2), ceil(W / 2))."""
        height, width = x.shape[-2:]
        x = F.pad(self.dropout(x), (0, width % 2, 0, height % 2))
        return self.norm(F.relu(self.conv(x)))


class Up(nn.Module):
    """Double height and width, act, and add what was seen at that resolution on the way down."""

    def __init__(self, inputs: int, outputs: int, num_actions: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.action = ActionInjection(num_actions, inputs)
        self.conv = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
        self.norm = ChannelNorm(outputs)

    def forward(self, x: Tensor, skip: Tensor, action: Tensor) -> Tensor:
        """(B, inputs, ceil(H / 2), ceil(W / 2)) and skip (B, outputs, H, W) to skip's shape."""
        x = F.relu(self.conv(self.action(self.dropout(x), action)))
        return self.norm(x[..., : skip.shape[-2], : skip.shape[-1]] + skip)


class UNet(nn.Module):
    """SimPLe's network (Kaiser et al. 2019, figure 2), of any size.

    Args:
        inputs: channels of the input picture.
        height: of the pictures.
        width: of the pictures.
        outputs: channels of the output picture.
        outcomes: numbers read off the whole picture beside it.
        num_actions: A.
        size: widths and depth.
    """

    def __init__(
        self, inputs: int, height: int, width: int, outputs: int, outcomes: int, num_actions: int, size: UNetSize
    ) -> None:
        super().__init__()
        finest, *_, coarsest = size.channels
        self.patch = size.patch
        self.padding = (0, -width % size.patch, 0, -height % size.patch)
        shape = [math.ceil(height / size.patch), math.ceil(width / size.patch)]
        # One learned map per pixel of the finest resolution tells the convolutions where they are.
        self.position = nn.Parameter(torch.zeros(finest, *shape))
        self.stem = nn.Conv2d(inputs * size.patch**2, finest, 3, padding=1)
        self.downs = nn.ModuleList(Down(a, b, size.dropout) for a, b in pairwise(size.channels))
        self.ups = nn.ModuleList(Up(a, b, num_actions, size.dropout) for a, b in pairwise(size.channels[::-1]))
        self.middle_action = ActionInjection(num_actions, coarsest)
        self.middle_convs = nn.ModuleList(nn.Conv2d(coarsest, coarsest, 3, padding=1) for _ in range(2))
        self.middle_norms = nn.ModuleList(ChannelNorm(coarsest) for _ in range(2))
        self.middle_dropout = nn.Dropout(size.residual_dropout)
        self.head = nn.Conv2d(finest, outputs * size.patch**2, 3, padding=1)
        for _ in self.downs:
            shape = [math.ceil(side / 2) for side in shape]
        self.outcome = nn.Sequential(
            nn.Linear(coarsest * math.prod(shape) + finest, 128), nn.ReLU(), nn.Linear(128, outcomes)
        )

    def forward(self, x: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Map pictures (B, inputs, H, W) and action weights (B, A) to (B, outputs, H, W) and (B, outcomes)."""
        height, width = x.shape[-2:]
        x = F.pixel_unshuffle(F.pad(x, self.padding), self.patch)
        x = F.relu(self.stem(x.contiguous(memory_format=torch.channels_last)) + self.position)
        skips = []
        for down in self.downs:
            skips.append(x)
            x = down(x)
        x = self.middle_action(x, action)
        for conv, norm in zip(self.middle_convs, self.middle_norms, strict=True):
            x = norm(x + self.middle_dropout(F.relu(conv(x))))
        coarsest = x
        for up in self.ups:
            x = up(x, skips.pop(), action)
        picture = F.pixel_shuffle(self.head(x), self.patch)[..., :height, :width]
        return picture, self.outcome(torch.cat([coarsest.flatten(1), x.mean(dim=(2, 3))], dim=1))
