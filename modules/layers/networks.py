"""Feature networks of policies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}


def body(
    feature_shape: tuple[int, ...],
    hidden: Sequence[int],
    channels: Sequence[int] = (32, 64, 64),
    activation: str = "relu",
    layer_norm: bool = False,
) -> tuple[nn.Sequential, int]:
    """Return a network from features to a flat vector, and that vector's length.

    Pictures first pass through the convolutions of Mnih et al. 2015. The stride of the first convolution scales with
    the picture, so that the output has about the size that it has for 84 pixels.

    Args:
        feature_shape: shape of the features, (C, H, W) or (D,).
        hidden: widths of the fully connected layers.
        channels: channels of the three convolutions.
        activation: activation function: "relu", "silu" or "tanh".
        layer_norm: apply layer normalisation before every activation of the fully connected layers.
    """
    layers: list[nn.Module] = []
    act = ACTIVATIONS[activation]
    width = math.prod(feature_shape)
    if len(feature_shape) == 3:
        stride = max(1, round(min(feature_shape[1:]) / 21))
        kernels = ((2 * stride, stride), (4, 2), (3, 1))
        before = feature_shape[0]
        for after, (kernel, step) in zip(channels, kernels, strict=True):
            layers += [nn.Conv2d(before, after, kernel, step), act()]
            before = after
        layers.append(nn.Flatten())
        with torch.no_grad():
            width = nn.Sequential(*layers)(torch.zeros(1, *feature_shape)).shape[1]
    else:
        layers.append(nn.Flatten())
    for after in hidden:
        layers.append(nn.Linear(width, after))
        if layer_norm:
            layers.append(nn.LayerNorm(after))
        layers.append(act())
        width = after
    return nn.Sequential(*layers), width
