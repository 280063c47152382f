"""The convolutional variational autoencoder of World Models (Ha & Schmidhuber 2018)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from modules.batch import Batch
from modules.errors import UserError
from modules.optimization import Optimization
from modules.world_model import Loss, Spec, WorldModel

LOG_STD_BOUNDS = (-8.0, 4.0)
"""Bounds of the posterior's log standard deviation: a diverging encoder gives a large loss instead of NaN."""

FOREGROUND = 0.05
"""Least difference of a foreground pixel from the median picture, as a fraction of white."""


class VAE(WorldModel):
    """Encodes the newest frame as a Gaussian over z, and decodes frames from z (Kingma & Welling 2014).

    The VAE alone cannot dream: its state is z, the mean of the posterior, and a policy on z learns model-free.
    `modules.latents.mdn_rnn` dreams in z.

    The encoder has convolutions of 4 x 4 pixels with stride 2. The decoder has a linear layer and as many transposed
    convolutions, whose kernels depend on the size of the picture. With four layers, 64 x 64 x 3 gives the paper's
    networks.

    Args:
        latent_size: number of numbers in z; 32 for the paper's car racing, 64 for its Doom.
        channels: channels of the encoder's convolutions; the decoder reverses their order.
        kl_tolerance: floor of the KL divergence from the prior, in nats per number of z; 0.5 in the paper.
        kl_weight: weight of the KL divergence, relative to the squared error summed over a picture.
        foreground_weight: weight of a pixel's error where the frame differs from the median picture, which `refit`
            computes; 1 in the paper, whose environments have no important small objects.
        num_frames: number of frames of a batch that an update learns from, drawn at random; null takes all frames.
        optimization: optimizer, learning rate and schedule of the model.
    """

    capabilities = frozenset({"decode"})
    debug: ClassVar[dict[str, Any]] = {"channels": [4, 4, 4]}
    offset: Tensor

    def __init__(
        self,
        latent_size: int = 32,
        channels: Sequence[int] = (32, 64, 128, 256),
        kl_tolerance: float = 0.5,
        kl_weight: float = 1.0,
        foreground_weight: float = 1.0,
        num_frames: int | None = None,
        optimization: Optimization = Optimization(lr=1e-4),
    ) -> None:
        super().__init__(optimization)
        if latent_size < 1 or not channels or min(channels) < 1:
            raise UserError(f"the VAE needs latent_size and channels of at least 1: got {latent_size}, {channels}")
        if num_frames is not None and num_frames < 1:
            raise UserError(f"num_frames of the VAE must be at least 1, or null for all: got {num_frames}")
        self.latent_size = latent_size
        self.channels = channels
        self.kl_tolerance, self.kl_weight = kl_tolerance, kl_weight
        self.foreground_weight = foreground_weight
        self.num_frames = num_frames

    def build(self, spec: Spec) -> None:
        """Build the networks for frames (C, H, W)."""
        if len(spec.observation_shape) != 3:
            raise UserError(
                f"the VAE encodes frames (C, H, W): observations are {spec.observation_shape}; try modules.states"
            )
        self.state_shape = self.feature_shape = (self.latent_size,)
        self.frame_channels = spec.observation_shape[0]
        self.encoder, width = encoder(spec.observation_shape, self.channels)
        self.posterior = nn.Linear(width, 2 * self.latent_size)
        self.decoder = decoder(self.latent_size, spec.observation_shape, self.channels)
        self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.register_buffer("offset", torch.zeros(spec.observation_shape))

    @torch.no_grad()
    def refit(self, batch: Batch, validation_windows: Batch | None = None) -> None:
        """Start an untrained decoder from the median picture, so that it need not learn the constant background."""
        if self.updates or self.offset.any():
            return
        assert batch.observation is not None
        median = self.newest(batch.observation.flatten(0, 1)).median(dim=0).values
        self.offset.copy_(median.clamp(0.01, 0.99).logit())

    def newest(self, observation: Tensor) -> Tensor:
        """Return the newest frames in [0, 1], (..., C, H, W), of uint8 stacks (..., stack * C, H, W)."""
        return observation[..., -self.frame_channels :, :, :].float() / 255

    def infer(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and logarithm of the standard deviation (B, Z) of z, given frames (B, C, H, W) in [0, 1]."""
        mean, log_std = self.posterior(self.encoder(frames)).float().chunk(2, dim=1)
        return mean, log_std.clamp(*LOG_STD_BOUNDS)

    def paint(self, z: Tensor) -> Tensor:
        """Return frames (B, C, H, W) in [0, 1], decoded from z (B, Z)."""
        return (self.decoder(z).float() + self.offset).sigmoid()

    def weights(self, frames: Tensor) -> Tensor:
        """Return the weights of the pixels of frames (B, C, H, W): foreground pixels weigh `foreground_weight`."""
        foreground = (frames - self.offset.sigmoid()).abs() > FOREGROUND
        return 1 + (self.foreground_weight - 1) * foreground

    def loss(self, batch: Batch) -> Loss:
        """Return squared error plus floored divergence (appendix A.1), the means over frames.

        The parts are reconstruction (weighted sum over pixels), mse (unweighted mean over pixels), kl (divergence
        in nats before the floor) and active (how many numbers of z carry information).
        """
        assert batch.observation is not None
        frames = self.newest(batch.observation).flatten(0, 1)
        # The emulator may not have drawn the last frame of an episode.
        index = (~batch.is_last).flatten().nonzero()[:, 0]
        if self.training and self.num_frames is not None and self.num_frames < len(index):
            index = index[torch.randperm(len(index), device=index.device)[: self.num_frames]]
        if len(index) < len(frames):
            frames = frames[index]
        mean, log_std = self.infer(frames)
        z = mean + log_std.exp() * torch.randn_like(mean)
        squared = (self.paint(z) - frames).square()
        weighted = squared if self.foreground_weight == 1 else self.weights(frames) * squared
        reconstruction = weighted.sum(dim=(1, 2, 3)).mean()
        per_number = 0.5 * (mean.square() + (2 * log_std).exp() - 1) - log_std
        kl = per_number.sum(dim=1)
        floored = kl.clamp(min=self.kl_tolerance * self.latent_size).mean()
        loss = reconstruction + self.kl_weight * floored
        parts = {
            "loss": loss,
            "reconstruction": reconstruction,
            "mse": squared.mean(),
            "kl": kl.mean(),
            "active": (per_number.mean(dim=0) > 0.1).float().sum(),
        }
        return Loss(loss, {name: part.detach() for name, part in parts.items()})

    def encode(self, batch: Batch) -> Tensor:
        """Return the means of z for all observations at once."""
        assert batch.observation is not None
        return self.infer(self.newest(batch.observation.flatten(0, 1)))[0].unflatten(0, batch.shape)

    def initial(self, batch_size: int) -> Tensor:
        """Return zeros, the prior's mean."""
        return torch.zeros(batch_size, self.latent_size, device=self.device)

    def observe(self, state: Tensor, action: Tensor, observation: Tensor, is_first: Tensor) -> Tensor:
        """Return the mean of z, which depends only on the observation."""
        return self.infer(self.newest(observation))[0]

    def decode(self, state: Tensor) -> Tensor:
        """Return the frame in [0, 1], (B, C, H, W)."""
        return self.paint(state)


def encoder(frame_shape: Sequence[int], channels: Sequence[int]) -> tuple[nn.Sequential, int]:
    """Return convolutions of stride 2 from (C, H, W) to a flat vector, and its length; 1024 in the paper."""
    before, *size = frame_shape
    layers: list[nn.Module] = []
    for after in channels:
        kernel = [min(4, length) for length in size]
        layers += [nn.Conv2d(before, after, kernel, stride=2), nn.ReLU()]  # type: ignore[arg-type]
        before, size = after, [(length - k) // 2 + 1 for length, k in zip(size, kernel, strict=True)]
    return nn.Sequential(*layers, nn.Flatten()), before * math.prod(size)


def decoder(latent_size: int, frame_shape: Sequence[int], channels: Sequence[int]) -> nn.Sequential:
    """Return a linear layer and transposed convolutions of stride 2 from z to the logits (C, H, W) of a picture.

    From the picture back to the first layer, a side of s pixels comes from one of (s - k) / 2 + 1 by the largest kernel
    k of at most 6 that divides evenly: 64 from 30, 13, 5 and 1 by kernels of 6, 6, 5 and 5, as in the paper.
    """
    color, *size = frame_shape
    kernels: list[list[int]] = []
    for _ in channels:
        kernel = [max(k for k in range(1, 7) if k <= length and (length - k) % 2 == 0) for length in size]
        kernels.insert(0, kernel)
        size = [(length - k) // 2 + 1 for length, k in zip(size, kernel, strict=True)]
    first = max(channels[-1], 4 * channels[-1] // math.prod(size))
    widths = [first, *reversed(channels[:-1]), color]
    layers: list[nn.Module] = [nn.Linear(latent_size, first * math.prod(size)), nn.Unflatten(1, (first, *size))]
    for before, after, kernel in zip(widths[:-1], widths[1:], kernels, strict=True):
        spread = Spread if len(layers) == 2 and size == [1, 1] else nn.ConvTranspose2d
        layers += [spread(before, after, kernel, stride=2), nn.ReLU()]  # type: ignore[arg-type]
    return nn.Sequential(*layers[:-1])


class Spread(nn.ConvTranspose2d):
    """A transposed convolution of a single pixel: one matrix product, which is four times as fast."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map (B, C, 1, 1) to (B, C', k, k)."""
        assert self.bias is not None
        spread = x.flatten(1) @ self.weight.flatten(1)
        return spread.unflatten(1, self.weight.shape[1:]) + self.bias[:, None, None]
