"""Residual blocks and the transition of latent states, for pictures (B, C, H, W) and for vectors (B, C)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["batch", "layer"]


def normalisation(width: int, norm: Norm) -> nn.Module:
    """Return batch or layer normalisation of (B, width) or (B, width, H, W)."""
    return AnyBatchNorm(width) if norm == "batch" else nn.GroupNorm(1, width)


class AnyBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of vectors (B, C) and of pictures (B, C, H, W)."""

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.ndim in (2, 4), input.shape


class Residual(nn.Module):
    """A residual block of two convolutions of kernel 3, or of two linear layers for vectors."""

    def __init__(self, width: int, picture: bool, norm: Norm) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            mix(width, width, picture), normalisation(width, norm), nn.ReLU(),
            mix(width, width, picture), normalisation(width, norm),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) or (B, C) to the same shape."""
        return F.relu(x + self.layers(x))


def mix(before: int, after: int, picture: bool, stride: int = 1) -> nn.Module:
    """Return a convolution of kernel 3, or a linear layer for vectors. A normalisation follows it.

    The linear layer has a bias: without it, layer normalisation would map x and 2 x to the same output.
    """
    if picture:
        return nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
    return nn.Linear(before, after)


class Transition(nn.Module):
    """Maps a latent and an action to the next latent: MuZero's dynamics g without its reward.

    Args:
        shape: shape of a latent, (C, H, W) or (D,).
        num_actions: number of actions, A.
        blocks: number of residual blocks.
        norm: normalisation: "batch" or "layer".
    """

    def __init__(self, shape: tuple[int, ...], num_actions: int, blocks: int, norm: Norm) -> None:
        super().__init__()
        picture = len(shape) == 3
        self.enter = nn.Sequential(mix(shape[0] + num_actions, shape[0], picture), normalisation(shape[0], norm))
        self.blocks = nn.Sequential(*[Residual(shape[0], picture, norm) for _ in range(blocks)])

    def forward(self, latent: Tensor, action: Tensor) -> Tensor:
        """Map latents (B, *shape) and weights of actions (B, A), one plane per action, to the next latents."""
        planes = action.view(*action.shape, *[1] * (latent.ndim - 2)).expand(*action.shape, *latent.shape[2:])
        return self.blocks(F.relu(latent + self.enter(torch.cat([latent, planes], dim=1))))
