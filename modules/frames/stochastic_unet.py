"""The next frame, where chance has a say in it: SimPLe's stochastic model with discrete latents."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from modules.batch import Batch
from modules.errors import UserError
from modules.frames.unet import UNet
from modules.layers.bits import WORD, Posterior, Prior, binarize
from modules.layers.unet import UNetSize
from modules.optimization import Optimization


class StochasticUNet(UNet):
    """A UNet whose way up is told by a few bits what cannot be known: Kaiser et al. 2019, section 4, figure 2.

    While it learns, a posterior that has seen the next frame writes the bits, and a prior that has not learns to
    predict them; a step draws them from the prior, so that every dream is one crisp future of many. Its state is
    `UNet`'s: nothing but the frames remembers what was drawn. The paper's recurrent state is left out.

    Args:
        size: of the network: "debug", "tiny" (for frames of 42 x 42), "small", "medium", "simple" (the paper's).
        bits: N, a multiple of 8; 128 in the paper.
        bit_noise: standard deviation of Gaussian noise on the posterior's logits, in training.
        bit_flips: fraction of the posterior's bits that are turned over, in training.
        bit_dropout: fraction of training steps that get no bits at all, so that the network knows what it can without.
        prior_weight: of the prior's cross-entropy, in nats per word of 8 bits.
        prior_width: of the prior's LSTM.
        levels: K grey or colour levels that a pixel is classified into, at most 256 (the paper's).
        frame_loss: "categorical", a softmax over the levels of every pixel, or "l2".
        reward_loss: "categorical", a softmax over the signs -1, 0, 1, or "real", squared error.
        clip: nats (squared error for "l2") of a pixel below which it is learned well enough; 0.03 in the paper.
        motion_weight: how much more a pixel counts where the next frame differs from the last one. 1 in the paper.
        outcome_weight: of reward and continuation, beside a frame loss that is the mean over pixels.
        copy_bias: initial logit for "the pixel stays as it is"; null does without, as the paper does.
        unroll: steps that the model is trained on its own predictions.
        unroll_warmup: updates over which these steps double from 1 up to `unroll`.
        scheduled_sampling: updates over which the probability that such a step is fed with the model's own prediction,
            instead of what was recorded, rises linearly to 1; 0 feeds it always. 40,000 in the paper.
        input_noise: fraction of input pixels that are replaced by the batch's median colour.
        temperature: of the words of bits that a step draws; 0 takes the likeliest. Pixels take the likeliest level.
        compile: compile the networks with torch.compile.
        optimization: optimizer, learning rate and schedule of the model.
    """

    def __init__(
        self,
        size: Literal["debug", "tiny", "small", "medium", "simple"] = "small",
        bits: int = 128,
        bit_noise: float = 0.2,
        bit_flips: float = 0.1,
        bit_dropout: float = 0.2,
        prior_weight: float = 0.001,
        prior_width: int = 128,
        levels: int = 16,
        frame_loss: Literal["categorical", "l2"] = "categorical",
        reward_loss: Literal["categorical", "real"] = "categorical",
        clip: float = 0.03,
        motion_weight: float = 10.0,
        outcome_weight: float = 0.03,
        copy_bias: float | None = 4.0,
        unroll: int = 4,
        unroll_warmup: int = 0,
        scheduled_sampling: int = 0,
        input_noise: float = 0.0,
        temperature: float = 1.0,
        compile: bool = False,
        optimization: Optimization = Optimization(),
    ) -> None:
        if bits < WORD or bits % WORD:
            raise UserError(f"model.bits must be a multiple of {WORD}, the bits that are drawn at a time: got {bits}")
        super().__init__(
            size=size,
            levels=levels,
            frame_loss=frame_loss,
            reward_loss=reward_loss,
            clip=clip,
            motion_weight=motion_weight,
            outcome_weight=outcome_weight,
            copy_bias=copy_bias,
            unroll=unroll,
            unroll_warmup=unroll_warmup,
            scheduled_sampling=scheduled_sampling,
            input_noise=input_noise,
            temperature=temperature,
            compile=compile,
            optimization=optimization,
        )
        self.bits = bits
        self.bit_noise = bit_noise
        self.bit_flips = bit_flips
        self.bit_dropout = bit_dropout
        self.prior_weight = prior_weight
        self.prior_width = prior_width

    def build_networks(self, size: UNetSize, height: int, width: int, latents: int = 0) -> None:
        """Make the networks, the posterior and the prior."""
        super().build_networks(size, height, width, latents=self.bits)
        inputs = self.feature_shape[0] + self.channels
        self.posterior = Posterior(inputs, height, width, 2 * self.num_actions, size, self.bits)
        self.prior = Prior(math.prod(size.shapes(height, width)[-1]), self.bits, self.prior_width)

    @property
    def pixel_temperature(self) -> float:
        """Of sampled pixels: what is left to chance is in the bits."""
        return 0.0

    def loss_weights(self) -> dict[str, float]:
        """Return what every part counts for in the total."""
        return {**super().loss_weights(), "prior": self.prior_weight}

    def predict(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the networks on bits that are drawn from the prior."""
        condition = self.condition(state, action)
        seen = self.encoder(self.standardized(self.frames(state)), condition)
        bits = self.prior.sample(seen[-1].flatten(1), self.temperature)
        return self.paint(state, seen, torch.cat([condition, bits], dim=1))

    def transition_losses(self, state: Tensor, rows: Batch, drawn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Predict one step with the bits that the posterior gives away, and those bits."""
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
            # A closing frame shows that the episode ends, not what came: bits of it would give the end away.
            bits = torch.where(drawn[:, None], bits, self.prior.sample(seen[-1].flatten(1)))
        prediction = self.paint(state_seen, seen, torch.cat([condition, bits], dim=1))
        return prediction[0], {**self.prediction_losses(prediction, state, rows), "prior": prior_losses}

    def disturbed(self, logits: Tensor) -> Tensor:
        """Return the posterior's bits (B, N), with noise and flips and at times none of them (0) in training."""
        if not self.training:
            return binarize(logits)
        kept = torch.rand(len(logits), 1, device=logits.device) >= self.bit_dropout
        return binarize(logits, self.bit_noise, self.bit_flips) * kept
