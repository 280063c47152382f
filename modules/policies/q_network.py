"""The network of Q-learning: an encoder, fully connected layers, and a head for action values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from modules.errors import UserError, check_range
from modules.layers.networks import fully_connected, impala, minmax, nature, output_shape


@dataclass(frozen=True)
class Network:
    """The layers between features and action values.

    Args:
        encoder: encoder of pictures: "nature", three convolutions (Mnih et al. 2015), or "impala", a residual network
            (Espeholt et al. 2018). Vectors have none.
        channels: channels of the encoder's three stages; the papers have [32, 64, 64] and [16, 32, 32].
        width: factor by which all channels are multiplied.
        stride: stride of the first of the three convolutions, whose kernel is twice as wide; null takes a 21st of the
            picture's side, which is 4 for 84 pixels. IMPALA has none.
        normalise: scale the encoder's output to [0, 1] for each picture (Schwarzer et al. 2023).
        hidden: widths of the fully connected layers.
        activation: activation function: "relu", "silu" or "tanh".
        layer_norm: apply layer normalisation in the fully connected layers, which makes many updates per real step more
            stable.
        dueling: estimate a value and an advantage for each action (Wang et al. 2016).
    """

    encoder: Literal["nature", "impala"] = "nature"
    channels: tuple[int, ...] = (32, 64, 64)
    width: int = 1
    stride: int | None = None
    normalise: bool = False
    hidden: tuple[int, ...] = (128, 128)
    activation: Literal["relu", "silu", "tanh"] = "relu"
    layer_norm: bool = False
    dueling: bool = True

    def __post_init__(self) -> None:
        check_range("network.width", self.width, 1)
        check_range("network.stride", self.stride, 1)
        if len(self.channels) != 3 or min(*self.channels, *self.hidden) < 1:
            raise UserError(
                "network needs channels of three stages and layers of at least 1 unit: "
                f"got {list(self.channels)} and {list(self.hidden)}"
            )


class QNetwork(nn.Module):
    """Action values Q(s, a), or the logits of their distributions.

    Args:
        settings: settings of the layers.
        shape: shape of the features, (C, H, W) or (D,).
        num_actions: number of actions, A.
        atoms: number of atoms of each action's distribution; None gives scalar values.
    """

    def __init__(self, settings: Network, shape: tuple[int, ...], num_actions: int, atoms: int | None) -> None:
        super().__init__()
        self.normalise, self.atoms, self.num_actions = settings.normalise, atoms, num_actions
        encoder: nn.Module = nn.Identity()
        if len(shape) == 3:
            channels = [settings.width * each for each in settings.channels]
            if settings.encoder == "impala":
                encoder = impala(shape, channels, settings.activation)
            else:
                encoder = nature(shape, channels, settings.activation, settings.stride)
        self.encoder = encoder
        self.latent_shape = output_shape(encoder, shape)
        width = math.prod(self.latent_shape)
        self.hidden = nn.Sequential(*fully_connected(width, settings.hidden, settings.activation, settings.layer_norm))
        width = [width, *settings.hidden][-1]
        self.advantage = nn.Linear(width, num_actions * (atoms or 1))
        self.value = nn.Linear(width, atoms or 1) if settings.dueling else None

    def encode(self, features: Tensor) -> Tensor:
        """Map features (B, *shape) to latents (B, *latent_shape)."""
        latent = self.encoder(features)
        return minmax(latent) if self.normalise else latent

    def project(self, latent: Tensor) -> Tensor:
        """Map latents to vectors by the first fully connected layer, before its activation."""
        return self.hidden[0](latent.flatten(1))

    def head(self, latent: Tensor) -> Tensor:
        """Map latents to action values (B, A), or to logits (B, A, atoms).

        Dueling heads add a value and advantages of mean 0 (Wang et al. 2016, equation 9).
        """
        x = self.hidden(latent.flatten(1))
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 cannot distinguish a value of 100 from 100.4
            advantage = self.advantage(x.float())
            value = None if self.value is None else self.value(x.float())
        if self.atoms is not None:
            advantage = advantage.unflatten(1, (self.num_actions, self.atoms))
            value = None if value is None else value[:, None]
        return advantage if value is None else value + advantage - advantage.mean(dim=1, keepdim=True)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, *shape) to action values (B, A), or to logits (B, A, atoms)."""
        return self.head(self.encode(features))
