"""Networks from features to vectors: encoders of pictures, and fully connected layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from modules.errors import UserError, check_range

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}


def nature(
    shape: tuple[int, ...], channels: Sequence[int], activation: str = "relu", stride: int | None = None
) -> nn.Sequential:
    """Return the three convolutions of Mnih et al. 2015, from pictures (B, C, H, W) to latents (B, C', H', W').

    Unless it is given, the stride of the first convolution scales with the picture, so that the output has about the
    size that it has for 84 pixels.

    Raises:
        UserError: the picture is too small for the stride.
    """
    layers: list[nn.Module] = []
    stride = stride or max(1, round(min(shape[1:]) / 21))
    if min(shape[1:]) < 9 * stride:
        raise UserError(
            f"three convolutions, the first of stride {stride}, see pictures of at least {9 * stride} pixels: got "
            f"{shape[1]} x {shape[2]}"
        )
    before = shape[0]
    for after, (kernel, step) in zip(channels, ((2 * stride, stride), (4, 2), (3, 1)), strict=True):
        layers += [nn.Conv2d(before, after, kernel, step), ACTIVATIONS[activation]()]
        before = after
    return nn.Sequential(*layers)


class PreActivation(nn.Module):
    """A residual block without normalisation: an activation stands before each of its two convolutions."""

    def __init__(self, channels: int, activation: str) -> None:
        super().__init__()
        act = ACTIVATIONS[activation]
        convolutions = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)]
        self.layers = nn.Sequential(act(), convolutions[0], act(), convolutions[1])

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return x + self.layers(x)


def impala(shape: tuple[int, ...], channels: Sequence[int], activation: str = "relu") -> nn.Sequential:
    """Return the residual encoder of IMPALA (Espeholt et al. 2018, figure 3): (B, C, H, W) to (B, C', H / 8, W / 8).

    Each stage is a convolution, a max pooling that halves the picture, and two residual blocks. Channels lie last in
    memory, which is faster on CPUs too.
    """
    layers: list[nn.Module] = []
    before = shape[0]
    for after in channels:
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.MaxPool2d(3, stride=2, padding=1)]
        layers += [PreActivation(after, activation) for _ in range(2)]
        before = after
    encoder = nn.Sequential(*layers, ACTIVATIONS[activation]())
    return encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def fully_connected(width: int, hidden: Sequence[int], activation: str, layer_norm: bool) -> list[nn.Module]:
    """Return fully connected layers after a vector of `width` numbers, with an activation after each."""
    layers: list[nn.Module] = []
    for after in hidden:
        check_range("every width in hidden", after, 1)
        layers.append(nn.Linear(width, after))
        if layer_norm:
            layers.append(nn.LayerNorm(after))
        layers.append(ACTIVATIONS[activation]())
        width = after
    return layers


@torch.no_grad()
def output_shape(network: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a network's output for one input, without the batch dimension."""
    return tuple(network(torch.zeros(1, *shape)).shape[1:])


def body(
    feature_shape: tuple[int, ...],
    hidden: Sequence[int],
    channels: Sequence[int] = (32, 64, 64),
    activation: str = "relu",
    layer_norm: bool = False,
) -> tuple[nn.Sequential, int]:
    """Return a network from features to a flat vector, and that vector's length; convolutions see pictures first.

    Args:
        feature_shape: shape of the features, (C, H, W) or (D,).
        hidden: widths of the fully connected layers.
        channels: channels of the three convolutions.
        activation: activation function: "relu", "silu" or "tanh".
        layer_norm: apply layer normalisation before every activation of the fully connected layers.
    """
    pictures = len(feature_shape) == 3
    encoder = nature(feature_shape, channels, activation) if pictures else nn.Sequential()
    width = math.prod(output_shape(encoder, feature_shape))
    layers = [*encoder, nn.Flatten(), *fully_connected(width, hidden, activation, layer_norm)]
    return nn.Sequential(*layers), [width, *hidden][-1]


def minmax(x: Tensor) -> Tensor:
    """Scale each item of a batch (B, ...) to [0, 1] (Schrittwieser et al. 2020, appendix G), in float32."""
    rows = x.flatten(1).float()
    low, high = rows.aminmax(dim=1, keepdim=True)
    return ((rows - low) / (high - low).clamp(min=1e-5)).view(x.shape)
