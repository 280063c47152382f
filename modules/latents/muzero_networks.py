"""MuZero's three functions: representation h, dynamics g and prediction f."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.errors import UserError
from modules.layers.networks import minmax
from modules.layers.residual import Norm, Residual, Transition, mix, normalisation
from modules.layers.scalars import Support, symlog
from modules.policies.policy import Policy
from modules.world_model import Spec, Step


@dataclass(frozen=True)
class MuZeroSize:
    """Sizes of h, g and f."""

    latent: int
    """Channels of the latent picture, or the length of the latent vector."""
    blocks: int
    """Number of residual blocks of h at the latent's resolution, and of g."""
    hidden: int
    """Width of the heads' hidden layers; for vectors the width of every hidden layer."""
    halvings: tuple[tuple[int, int], ...] = ()
    """(channels, number of residual blocks after it) of each halving of the picture; empty for vectors. A halving that
    keeps the number of channels is a pooling, any other a convolution of stride 2."""
    head_blocks: int = 0
    """Number of residual blocks of f."""
    reduced: int = 16
    """Channels to which a head first reduces the latent picture."""
    recurrent: int = 64
    """Width of the LSTM that sums rewards."""
    projection: tuple[int, int] = (128, 64)
    """Widths of the projection for the consistency loss, and of its predictor's hidden layer."""


SIZES = {
    "vector": MuZeroSize(latent=64, blocks=1, hidden=128),
    "debug": MuZeroSize(8, 0, 16, ((4, 0), (8, 0), (8, 0), (8, 0)), reduced=4, recurrent=16, projection=(16, 8)),
    "tiny": MuZeroSize(32, 1, 64, ((16, 0), (32, 0), (32, 0))),
    "small": MuZeroSize(64, 1, 128, ((32, 0), (64, 1), (64, 0)), recurrent=128, projection=(256, 128)),
    "efficientzero": MuZeroSize(
        64, 1, 32, ((32, 1), (64, 1), (64, 1), (64, 0)), head_blocks=1, recurrent=512, projection=(1024, 512)
    ),
    "muzero": MuZeroSize(
        256, 16, 256, ((128, 2), (256, 3), (256, 3), (256, 0)), reduced=32, recurrent=512, projection=(1024, 512)
    ),
}


class Last(nn.Linear):
    """Last layer of a head. It starts at 0, and computes in float32 because bfloat16 is too coarse for values."""

    def reset_parameters(self) -> None:
        """Set weight and bias to 0."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, before) to (B, after) float32."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def look(shape: tuple[int, ...], size: MuZeroSize, norm: Norm) -> tuple[nn.Module, int]:
    """Return a network from a latent (B, *shape) to the input vector of a head, and the vector's length."""
    if len(shape) == 1:
        return nn.Identity(), shape[0]
    seen = [nn.Conv2d(shape[0], size.reduced, 1, bias=False), normalisation(size.reduced, norm), nn.ReLU()]
    return nn.Sequential(*seen, nn.Flatten()), size.reduced * math.prod(shape[1:])


def head(width: int, hidden: int, outputs: int, norm: Norm) -> nn.Sequential:
    """Return a head: a hidden layer and a last layer."""
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False), normalisation(hidden, norm), nn.ReLU(), Last(hidden, outputs)
    )


class Representation(nn.Module):
    """Representation h: maps an observation to a latent.

    Args:
        shape: shape of the observation, (C, H, W) or (D,).
        size: size of the network.
        norm: normalisation: "batch" or "layer".
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, shape: tuple[int, ...], size: MuZeroSize, norm: Norm) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width, picture = shape[0], len(shape) == 3
        self.picture = picture
        if picture != bool(size.halvings):
            kind = "pictures" if picture else "vectors"
            fit = ", ".join(name for name, other in SIZES.items() if bool(other.halvings) == picture)
            raise UserError(f"model.size does not see {kind}: expected one of {fit}")
        for channels, blocks in size.halvings:
            if channels == width:
                layers.append(nn.AvgPool2d(3, stride=2, padding=1))
            else:
                layers += [mix(width, channels, picture, stride=2), normalisation(channels, norm), nn.ReLU()]
            layers += [Residual(channels, picture, norm) for _ in range(blocks)]
            width = channels
        if not picture:
            layers += [mix(width, size.hidden, picture), normalisation(size.hidden, norm), nn.ReLU()]
            layers += [mix(size.hidden, size.latent, picture), normalisation(size.latent, norm), nn.ReLU()]
        layers += [Residual(size.latent, picture, norm) for _ in range(size.blocks)]
        self.layers = nn.Sequential(*layers)
        # `refit` standardises vectors by the observations before the first update; pictures are in [0, 1] already. A
        # better policy reaches states that are many standard deviations away, and symlog keeps such outliers small.
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))

    def forward(self, observation: Tensor) -> Tensor:
        """Map (B, *shape) float to (B, *latent_shape)."""
        return self.layers(observation if self.picture else symlog((observation - self.mean) / self.scale))


class Prediction(Policy):
    """Prediction f: the policy and the value of a latent.

    Args:
        size: size of the network.
        norm: normalisation: "batch" or "layer".
        support: number of integers in the value's distribution.
    """

    def __init__(self, size: MuZeroSize, norm: Norm, support: int) -> None:
        super().__init__()
        self.size, self.norm = size, norm
        self.support = Support(support)

    def build(self, feature_shape: tuple[int, ...], num_actions: int) -> None:
        """Build the networks."""
        size, norm = self.size, self.norm
        picture = len(feature_shape) == 3
        self.blocks = nn.Sequential(*[Residual(feature_shape[0], picture, norm) for _ in range(size.head_blocks)])
        self.policy_look, width = look(feature_shape, size, norm)
        self.value_look, _ = look(feature_shape, size, norm)
        self.policy_head = head(width, size.hidden, num_actions, norm)
        self.value_head = head(width, size.hidden, self.support.size, norm)

    def heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map latents (B, *feature_shape) to the logits of the policy (B, A) and of the value (B, support)."""
        seen = self.blocks(features)
        return self.policy_head(self.policy_look(seen)), self.value_head(self.value_look(seen))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map latents (B, *feature_shape) to logits (B, A) and values (B,)."""
        logits, value = self.heads(features)
        return logits, self.support.decode(value)


class MuZeroNetworks(nn.Module):
    """Networks h, g and f on states that are one float32 vector: the latent, and the LSTM's part with a value prefix.

    Args:
        spec: shapes of the environment.
        size: size of the networks.
        norm: normalisation: "batch" or "layer".
        state_norm: normalisation of latents: "minmax" scales every latent to [0, 1] (Schrittwieser et al. 2020,
            appendix G), "none" keeps it.
        support: number of integers in the distributions of value and reward.
        value_prefix: number of steps after which the LSTM's sum of rewards restarts (Ye et al. 2021, section 4.2);
            0 predicts single rewards.
    """

    capturable = True

    def __init__(
        self,
        spec: Spec,
        size: MuZeroSize,
        norm: Norm,
        state_norm: Literal["minmax", "none"],
        support: int,
        value_prefix: int,
    ) -> None:
        super().__init__()
        channels, *sides = spec.observation_shape
        self.num_actions, self.state_norm, self.value_prefix = spec.num_actions, state_norm, value_prefix
        self.representation = Representation((spec.frame_stack * channels, *sides), size, norm)
        for _ in size.halvings:
            sides = [-(-side // 2) for side in sides]
        self.latent_shape = (size.latent, *sides)
        self.latent_width = math.prod(self.latent_shape)
        self.recurrent = size.recurrent if value_prefix else 0
        # After the latent: h and c of the LSTM, the sum of rewards so far, and its number of steps.
        self.state_shape = (self.latent_width + (2 * self.recurrent + 2 if value_prefix else 0),)
        self.transition = Transition(self.latent_shape, spec.num_actions, size.blocks, norm)
        self.reward_look, width = look(self.latent_shape, size, norm)
        if value_prefix:
            self.lstm = nn.LSTMCell(width, self.recurrent)
            self.reward_norm = nn.Sequential(normalisation(self.recurrent, norm), nn.ReLU())
            width = self.recurrent
        self.reward_head = head(width, size.hidden, support, norm)
        self.policy = Prediction(size, norm, support)
        self.policy.build(self.latent_shape, spec.num_actions)
        self.support = self.policy.support

    def represent(self, observation: Tensor) -> Tensor:
        """Apply h: map observations (B, *), pictures uint8 or in [0, 1], to states (B, *state_shape)."""
        pixels = observation.float() / 255 if observation.dtype == torch.uint8 else observation.float()
        latent = self._normalised(self.representation(pixels))
        return F.pad(latent, (0, self.state_shape[0] - self.latent_width))

    def advance(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Apply g: map states and actions, (B,) int64 or weights (B, A), to the next states.

        Returns:
            The next states, the logits (B, support) of the reward or of the sum of rewards, and the expected reward
            (B,).
        """
        if not action.is_floating_point():
            action = F.one_hot(action, self.num_actions).float()
        latent = self.transition(self.features(state), action)
        seen = self.reward_look(latent)
        latent = self._normalised(latent)
        if not self.value_prefix:
            logits = self.reward_head(seen)
            return latent, logits, self.support.decode(logits)
        memory = state[:, self.latent_width :]
        memory = memory * (memory[:, -1:] < self.value_prefix)
        hidden, cell, before, steps = memory.split([self.recurrent, self.recurrent, 1, 1], dim=1)
        hidden, cell = (part.float() for part in self.lstm(seen, (hidden, cell)))
        logits = self.reward_head(self.reward_norm(hidden))
        prefix = self.support.decode(logits)
        after = torch.cat([latent, hidden, cell, prefix.detach()[:, None], steps + 1], dim=1)
        return after, logits, prefix - before[:, 0]

    def step(self, state: Tensor, action: Tensor) -> Step:
        """Apply g as a world model's step; MuZero does not predict ends, so the continuation is 1."""
        after, _, reward = self.advance(state, action)
        return Step(after, reward, torch.ones_like(reward))

    def features(self, state: Tensor) -> Tensor:
        """Return the latents (B, *latent_shape) of states."""
        return state[:, : self.latent_width].unflatten(1, self.latent_shape)

    def _normalised(self, latent: Tensor) -> Tensor:
        latent = latent.flatten(1).float()
        return latent if self.state_norm == "none" else minmax(latent)
