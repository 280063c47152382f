"""The two halves of a UNet that predicts a picture from a picture under a condition, such as an action."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class UNetSize:
    """Size of a UNet."""

    patch: int
    """Side of the squares of pixels that become channels at the input and pixels again at the output; 1 in SimPLe."""
    channels: tuple[int, ...]
    """Channels at each resolution, finest first; every next resolution halves height and width."""
    dropout: float = 0.0
    """Dropout rate before every convolution that changes the resolution."""
    residual_dropout: float = 0.0
    """Dropout rate at the coarsest resolution."""
    head: int = 3
    """Kernel of the output convolution, the most expensive layer; 1 paints every patch independently."""

    def shapes(self, height: int, width: int) -> list[tuple[int, int, int]]:
        """Return the features' (C, H, W) at each resolution, finest first, for pictures of a height and a width."""
        sides = [math.ceil(height / self.patch), math.ceil(width / self.patch)]
        shapes = []
        for channels in self.channels:
            shapes.append((channels, sides[0], sides[1]))
            sides = [math.ceil(side / 2) for side in sides]
        return shapes


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of every pixel."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Injection(nn.Module):
    """x * sigmoid(W1 c) + W2 c: one gain and one shift per channel (SimPLe's "multi-additive")."""

    def __init__(self, conditions: int, channels: int) -> None:
        super().__init__()
        self.gain = nn.Linear(conditions, channels)
        self.shift = nn.Linear(conditions, channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Inject a condition (B, conditions) into x (B, C, H, W)."""
        return x * self.gain(condition).sigmoid()[:, :, None, None] + self.shift(condition)[:, :, None, None]


class Down(nn.Module):
    """Halve height and width, rounding up."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.conv = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)
        self.norm = ChannelNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, ceil(H / 2), ceil(W / 2))."""
        height, width = x.shape[-2:]
        x = F.pad(self.dropout(x), (0, width % 2, 0, height % 2))
        return self.norm(F.relu(self.conv(x)))


class Up(nn.Module):
    """Inject the condition, double height and width, and add the encoder's features of that resolution."""

    def __init__(self, inputs: int, outputs: int, conditions: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.injection = Injection(conditions, inputs)
        self.conv = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
        self.norm = ChannelNorm(outputs)

    def forward(self, x: Tensor, skip: Tensor, condition: Tensor) -> Tensor:
        """Map (B, inputs, ceil(H / 2), ceil(W / 2)) and skip (B, outputs, H, W) to (B, outputs, H, W)."""
        x = F.relu(self.conv(self.injection(self.dropout(x), condition)))
        return self.norm(x[..., : skip.shape[-2], : skip.shape[-1]] + skip)


class Encoder(nn.Module):
    """The downward half of SimPLe's network (Kaiser et al. 2019, figure 2), of any size.

    Args:
        inputs: channels of the picture.
        height: height of the picture.
        width: width of the picture.
        conditions: length of a condition.
        size: widths and depth of the UNet.
    """

    def __init__(self, inputs: int, height: int, width: int, conditions: int, size: UNetSize) -> None:
        super().__init__()
        finest, coarsest = size.channels[0], size.channels[-1]
        self.patch = size.patch
        self.padding = (0, -width % size.patch, 0, -height % size.patch)
        # One learned map per pixel of the finest resolution tells the convolutions where they are.
        self.position = nn.Parameter(torch.zeros(size.shapes(height, width)[0]))
        self.stem = nn.Conv2d(inputs * size.patch**2, finest, 3, padding=1)
        self.downs = nn.ModuleList(Down(a, b, size.dropout) for a, b in pairwise(size.channels))
        self.injection = Injection(conditions, coarsest)
        self.convs = nn.ModuleList(nn.Conv2d(coarsest, coarsest, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(ChannelNorm(coarsest) for _ in range(2))
        self.dropout = nn.Dropout(size.residual_dropout)

    def forward(self, x: Tensor, condition: Tensor) -> list[Tensor]:
        """Map pictures (B, inputs, H, W) and conditions to the features at each resolution, finest first.

        The condition acts only on the coarsest features.
        """
        x = F.pixel_unshuffle(F.pad(x, self.padding), self.patch)
        features = [F.relu(self.stem(x.contiguous(memory_format=torch.channels_last)) + self.position)]
        for down in self.downs:
            features.append(down(features[-1]))
        x = self.injection(features[-1], condition)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(x + self.dropout(F.relu(conv(x))))
        return [*features[:-1], x]


class Decoder(nn.Module):
    """The upward half; its condition may hold more than the encoder's condition.

    Args:
        outputs: channels of the picture.
        height: height of the picture.
        width: width of the picture.
        conditions: length of a condition.
        size: widths and depth of the UNet, equal to the encoder's.
    """

    def __init__(self, outputs: int, height: int, width: int, conditions: int, size: UNetSize) -> None:
        super().__init__()
        self.patch, self.height, self.width = size.patch, height, width
        self.ups = nn.ModuleList(Up(a, b, conditions, size.dropout) for a, b in pairwise(size.channels[::-1]))
        self.head = nn.Conv2d(size.channels[0], outputs * size.patch**2, size.head, padding=size.head // 2)

    def forward(self, features: list[Tensor], condition: Tensor) -> tuple[Tensor, Tensor]:
        """Map the encoder's features to pictures (B, outputs, H, W) and the finest features below them."""
        x = features[-1]
        for up, skip in zip(self.ups, features[-2::-1], strict=True):
            x = up(x, skip, condition)
        return F.pixel_shuffle(self.head(x), self.patch)[..., : self.height, : self.width], x
