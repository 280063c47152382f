"""SimPLe's stochastic world model of frames, with discrete latents (Kaiser et al. 2019, section 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modules.batch import Batch
from modules.errors import UserError
from modules.frames.unet import FrameLoss, Prediction, UNet
from modules.layers.bits import WORD, Posterior, Prior, binarize
from modules.layers.unet import UNetSize


@dataclass(frozen=True)
class Bits:
    """Settings of the discrete latents, which are bits, and of the prior that predicts them.

    Args:
        number: number N of bits, a multiple of 8; 128 in the paper.
        noise: standard deviation of Gaussian noise on the posterior's logits, in training.
        flips: fraction of the posterior's bits that are flipped, in training.
        dropout: fraction of training steps in which all bits are 0, so that the network relies on them only where it
            must.
        prior_weight: weight of the prior's cross-entropy, in nats per word of 8 bits.
        prior_width: width of the prior's LSTM.
    """

    number: int = 128
    noise: float = 0.2
    flips: float = 0.1
    dropout: float = 0.2
    prior_weight: float = 0.001
    prior_width: int = 128

    def __post_init__(self) -> None:
        if self.number < WORD or self.number % WORD:
            raise UserError(
                f"model.bits.number must be a multiple of {WORD}, as the prior draws {WORD} bits at a time: "
                f"got {self.number}"
            )


class StochasticUNet(UNet):
    """A UNet whose decoder is conditioned on discrete latents (Kaiser et al. 2019, section 4, figure 2).

    In training the bits come from a posterior that sees the next frame, and a prior that does not see it learns to
    predict them. `step` draws the bits from the prior, so that a dream shows one sharp future instead of their mean.
    The state is that of `UNet`: it does not keep the bits. The paper's recurrent state is left out.

    Args:
        bits: number of discrete latents, their noise in training, and their prior.
        frame: levels of a pixel, and loss of the predicted frame.
        temperature: softmax temperature of the bits that a step draws from the prior; 0 takes the most probable bits.
            Pixels always take their most probable level.
        **kwargs: arguments of `UNet`.
    """

    def __init__(
        self,
        bits: Bits = Bits(),
        frame: FrameLoss = FrameLoss(clip=0.03),
        temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(frame=frame, temperature=temperature, **kwargs)
        self.bits = bits

    def build_networks(self, size: UNetSize, height: int, width: int, latents: int = 0) -> None:
        """Create the networks, the posterior and the prior."""
        super().build_networks(size, height, width, latents=self.bits.number)
        inputs = self.feature_shape[0] + self.channels
        self.posterior = Posterior(inputs, height, width, 2 * self.num_actions, size, self.bits.number)
        self.prior = Prior(math.prod(size.shapes(height, width)[-1]), self.bits.number, self.bits.prior_width)

    @property
    def pixel_temperature(self) -> float:
        """Softmax temperature of pixels: 0, because only the bits are drawn."""
        return 0.0

    def loss_weights(self) -> dict[str, float]:
        """Return the weight of each loss in the total."""
        return {**super().loss_weights(), "prior": self.bits.prior_weight}

    def predict(self, state: Tensor, action: Tensor) -> Prediction:
        """Run the networks with bits that are drawn from the prior."""
        condition = self.condition(state, action)
        seen = self.encoder(self.standardized(self.frames(state)), condition)
        bits = self.prior.sample(seen[-1].flatten(1), self.temperature)
        return self.complete(state, condition, *self.decoder(seen, torch.cat([condition, bits], dim=1)))

    def transition_losses(self, state: Tensor, rows: Batch, drawn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Predict one step with the posterior's bits, and predict these bits with the prior."""
        assert rows.observation is not None
        state_seen = self.add_noise(state)
        condition = self.condition(state, rows.action[:, 0])
        frames = self.frames(state_seen)
        seen = self.encoder(self.standardized(frames), condition)
        came = torch.cat([frames, rows.observation[:, 1, -self.channels :]], dim=1)
        logits = self.posterior(self.standardized(came), condition)
        prior_losses = self.prior.losses(seen[-1].flatten(1), logits.detach())
        bits = self.disturbed(logits)
        if not drawn.all():
            # The last frame of an episode is not the true one. Bits of it would reveal that the episode ends.
            bits = torch.where(drawn[:, None], bits, self.prior.sample(seen[-1].flatten(1)))
        painted = self.decoder(seen, torch.cat([condition, bits], dim=1))
        prediction = self.complete(state_seen, condition, *painted)
        return prediction.drawn, {**self.prediction_losses(prediction, state, rows), "prior": prior_losses}

    def disturbed(self, logits: Tensor) -> Tensor:
        """Return the posterior's bits (B, N); in training with noise, flips and dropout (all bits 0)."""
        if not self.training:
            return binarize(logits)
        kept = torch.rand(len(logits), 1, device=logits.device) >= self.bits.dropout
        return binarize(logits, self.bits.noise, self.bits.flips) * kept
