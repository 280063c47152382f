"""The next frame from a stack of frames: SimPLe's deterministic world model (Kaiser et al. 2019, section 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.batch import Batch
from modules.errors import UserError, check_range
from modules.layers.outcomes import Outcomes
from modules.layers.quantize import fit_palette, nearest_level
from modules.layers.unet import Decoder, Encoder, UNetSize
from modules.optimization import Optimization
from modules.world_model import Loss, Spec, Step, WorldModel

SIZES = {
    "debug": UNetSize(patch=4, channels=(8, 8, 8)),
    "tiny": UNetSize(patch=3, channels=(32, 64, 64), head=1),
    "small": UNetSize(patch=2, channels=(24, 32, 48, 64)),
    "medium": UNetSize(patch=2, channels=(64, 128, 256, 256, 256)),
    "simple": UNetSize(
        patch=1, channels=(64, 128, 256, 256, 256, 256, 256), dropout=0.1, residual_dropout=0.5
    ),
}  # fmt: skip


@dataclass(frozen=True)
class FrameLoss:
    """How a frame is predicted, and what a wrong one costs.

    Args:
        loss: "categorical", a softmax over the levels of every pixel, or "l2".
        levels: number K of grey or colour levels that a pixel is classified into, at most 256 (the paper's). Fewer are
            placed where the game's pixels are, by `refit`.
        clip: nats (squared error for "l2") of a pixel below which it is learned well enough: the clipped loss
            max(loss, clip). 0.03 in the paper.
        motion_weight: factor by which a pixel counts more where the next frame differs from the last one. 1 in the
            paper.
        copy_bias: initial logit for "the pixel stays as it is"; null does without, as the paper does.
    """

    loss: Literal["categorical", "l2"] = "categorical"
    levels: int = 16
    clip: float = 0.01
    motion_weight: float = 10.0
    copy_bias: float | None = 4.0


@dataclass(frozen=True)
class Unroll:
    """Steps that a model is trained on its own predictions.

    Args:
        steps: steps that are predicted from one recorded state.
        warmup: updates over which the steps double from 1 up to all.
        scheduled_sampling: updates over which the probability that a step is fed with the model's own prediction,
            instead of what was recorded, rises linearly to 1; 0 feeds it always. 40,000 in the paper.
    """

    steps: int = 4
    warmup: int = 0
    scheduled_sampling: int = 0

    def horizon(self, updates: int) -> int:
        """Return the number of steps after so many updates."""
        progress = min(1.0, updates / self.warmup) if self.warmup else 1.0
        return min(self.steps, 2 ** int(progress * self.steps.bit_length()))

    def own_predictions(self, updates: int) -> float:
        """Return the probability, after so many updates, that a step is fed with the model's own prediction."""
        return min(1.0, updates / self.scheduled_sampling) if self.scheduled_sampling else 1.0


class UNet(WorldModel):
    """Predicts frame, reward and continuation from a stack of frames and an action.

    Its state is the stack and the action that led to it, (frame_stack * C * H * W + 1,) uint8: what an action does
    depends on the one before (in Pong the paddle answers a step late; see docs/unet.md). A step drops the oldest frame
    and appends the predicted one. Rewards are predicted by their sign unless `reward_loss` is "real".

    Args:
        size: size of the network: "debug", "tiny" (for frames of 42 x 42, a thousand a second on one thread), "small"
            (trains in minutes on a CPU), "medium", "simple" (the paper's).
        frame: levels of a pixel, and loss of the predicted frame.
        reward_loss: "categorical", a softmax over the signs -1, 0, 1, or "real", squared error.
        outcome_weight: weight of the losses of reward and continuation, beside a frame loss that is the mean over
            pixels.
        unroll: steps that the model is trained on its own predictions.
        input_noise: fraction of input pixels that are replaced by the batch's median colour.
        temperature: temperature of sampled pixels; 0 takes the likeliest level.
        compile: compile the networks with torch.compile.
        optimization: optimizer, learning rate and schedule of the model.
    """

    capabilities = frozenset({"step", "reward", "decode"})
    debug: ClassVar[dict[str, Any]] = {"size": "debug"}
    palette: Tensor

    def __init__(
        self,
        size: Literal["debug", "tiny", "small", "medium", "simple"] = "small",
        frame: FrameLoss = FrameLoss(),
        reward_loss: Literal["categorical", "real"] = "categorical",
        outcome_weight: float = 0.03,
        unroll: Unroll = Unroll(),
        input_noise: float = 0.0,
        temperature: float = 0.0,
        compile: bool = False,
        optimization: Optimization = Optimization(),
    ) -> None:
        super().__init__(optimization)
        self.size = size
        self.frame = frame
        self.reward_loss = reward_loss
        self.outcome_weight = outcome_weight
        self.unroll = unroll
        self.input_noise = input_noise
        check_range(f"{type(self).__name__}.temperature", temperature, 0)
        self.temperature = temperature
        self.compile_network = compile

    def build(self, spec: Spec) -> None:
        """Make the networks for frames (C, H, W)."""
        channels, height, width = spec.observation_shape
        self.channels = channels
        self.num_actions = spec.num_actions
        self.feature_shape = (spec.frame_stack * channels, height, width)
        self.state_shape = (math.prod(self.feature_shape) + 1,)
        self.register_buffer("palette", torch.linspace(0, 255, self.frame.levels).round().to(torch.uint8))
        if self.frame.copy_bias is not None and self.frame.loss == "categorical":
            self.stay = torch.nn.Parameter(torch.tensor(float(self.frame.copy_bias)))
        self.build_networks(SIZES[self.size], height, width)
        for network in self.children():
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if self.compile_network:
                network.compile()

    def build_networks(self, size: UNetSize, height: int, width: int, latents: int = 0) -> None:
        """Make the networks; the way up is conditioned on `latents` numbers beside the actions."""
        conditions = 2 * self.num_actions
        outputs = self.channels * (self.frame.levels if self.frame.loss == "categorical" else 1)
        self.encoder = Encoder(self.feature_shape[0], height, width, conditions, size)
        self.decoder = Decoder(outputs, height, width, conditions + latents, size)
        self.outcomes = Outcomes(*size.shapes(height, width)[0], self.reward_loss)

    def refit(self, batch: Batch, validation_windows: Batch | None = None) -> None:
        """Place the levels where the game's pixels are; a fresh model's outcomes start as frequent as they are."""
        if self.updates:
            return  # what the network paints would mean other levels
        assert batch.observation is not None
        self.palette.copy_(fit_palette(batch.observation[:, :, -self.channels :], self.frame.levels))
        self.outcomes.start(batch)

    def loss_weights(self) -> dict[str, float]:
        """Return what every part counts for in the total."""
        return {"frame": 1.0, "reward": self.outcome_weight, "continuation": self.outcome_weight}

    def loss(self, batch: Batch) -> Loss:
        """Predict every segment of the windows from its first state, feeding predictions back.

        Of a window's first row only the action counts: what led to it is not known. A frame that closes an episode is
        no target: nobody acts on it, and emulators do not draw it.
        """
        if batch.shape[1] < 3:
            raise UserError(
                f"the UNet learns from windows of at least 3 rows: data.sampling.sequence_length is {batch.shape[1]}"
            )
        states = self.encode(batch)
        horizon = min(self.unroll.horizon(self.updates), batch.shape[1] - 2)
        segments = batch.replace(state=states)[:, 1:].segments(horizon + 1)
        assert segments.state is not None
        # Whether step t can be compared with what was recorded: no end and no cut up to it.
        reached = segments.has_successor().cumprod(dim=1).float()
        drawn = reached * segments.continuation[:, :-1]
        masks = {"reward": reached, "continuation": reached}
        weights = self.loss_weights()
        state = segments.state[:, 0]
        totals = dict.fromkeys(weights, torch.zeros((), device=state.device))
        for t in range(horizon):
            frame, losses = self.transition_losses(state, segments[:, t : t + 2], drawn[:, t] > 0)
            totals = {name: totals[name] + (masks.get(name, drawn)[:, t] * losses[name]).sum() for name in weights}
            state = self.append(state, segments.action[:, t], frame.detach())
            if self.training and self.unroll.scheduled_sampling:
                own = torch.rand(len(state), 1, device=state.device) < self.unroll.own_predictions(self.updates)
                state = torch.where(own, state, segments.state[:, t + 1])
        parts = {name: total / masks.get(name, drawn).sum().clamp(min=1) for name, total in totals.items()}
        loss = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        logged = {name: value.detach() for name, value in {"loss": loss, **parts}.items()}
        return Loss(loss, {**logged, "horizon": torch.tensor(float(horizon), device=loss.device)}, states)

    def transition_losses(self, state: Tensor, rows: Batch, drawn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Predict one step and compare it with what was recorded.

        Args:
            state: (B, *state_shape) that the step leaves from.
            rows: (B, 2): the row that was recorded there, and the next one.
            drawn: (B,) bool: the next row's frame is a true picture of what came.

        Returns:
            What `predict` gives for the frame, and each of `loss_weights`' losses, (B,).
        """
        prediction = self.predict(self.add_noise(state), rows.action[:, 0])
        return prediction[0], self.prediction_losses(prediction, state, rows)

    def prediction_losses(
        self, prediction: tuple[Tensor, Tensor, Tensor], state: Tensor, rows: Batch
    ) -> dict[str, Tensor]:
        """Compare what `predict` gives with what was recorded; each loss is (B,)."""
        frame, reward, continuation = prediction
        assert rows.observation is not None
        return {
            "frame": self.frame_losses(frame, rows.observation[:, 1, -self.channels :], last=self.newest(state)),
            "reward": self.outcomes.reward_losses(reward, rows.reward[:, 0]),
            "continuation": self.outcomes.continuation_losses(continuation, rows.continuation[:, 0]),
        }

    def predict(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the networks.

        Returns:
            The frame's logits (B, K, C, H, W) or values (B, C, H, W) in [0, 1], the reward's logits (B, 3) or value
            (B, 1), and the continuation's logit (B,).
        """
        condition = self.condition(state, action)
        return self.paint(state, self.encoder(self.standardized(self.frames(state)), condition), condition)

    def condition(self, state: Tensor, action: Tensor) -> Tensor:
        """Return the weights of the action and of the one before it, (B, 2 A)."""
        if not action.is_floating_point():
            action = F.one_hot(action, self.num_actions).float()
        return torch.cat([action, F.one_hot(state[:, -1].long(), self.num_actions)], dim=1)

    def standardized(self, frames: Tensor) -> Tensor:
        """Map uint8 frames (B, C, H, W) to float, standardised per sample."""
        pixels = frames.float() / 255
        scale, mean = torch.std_mean(pixels, dim=(1, 2, 3), keepdim=True)
        return (pixels - mean) / scale.clamp(min=1e-2)

    def paint(self, state: Tensor, seen: list[Tensor], condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `predict` does, from what the encoder saw in a state."""
        frame, painted = self.decoder(seen, condition)
        reward, continuation = self.outcomes(painted)
        frame, last = frame.float(), self.newest(state)
        if self.frame.loss == "categorical":
            frame = frame.unflatten(1, (self.frame.levels, self.channels))
            if self.frame.copy_bias is not None:
                level = self.level_of(last)[:, None]
                frame = frame.scatter_add_(1, level, self.stay.expand(level.shape))
        elif self.frame.copy_bias is not None:
            frame = frame + last.float() / 255
        return frame, reward, continuation

    def frame_losses(self, frame: Tensor, target: Tensor, last: Tensor) -> Tensor:
        """Return the clipped loss of every frame (B,): the mean over its pixels, which count more where they change."""
        if self.frame.loss == "categorical":
            target, last = self.level_of(target), self.level_of(last)
            losses = F.cross_entropy(frame, target, reduction="none")
        else:
            losses = (frame - target.float() / 255) ** 2
        weight = 1 + (self.frame.motion_weight - 1) * (target != last)
        return (weight * F.relu(losses - self.frame.clip)).mean(dim=(1, 2, 3))

    def level_of(self, pixels: Tensor) -> Tensor:
        """Return the index of each uint8 pixel's nearest level."""
        return nearest_level(self.palette)[pixels.long()]

    def add_noise(self, state: Tensor) -> Tensor:
        """Replace a few pixels by the median colour while training (the paper's section 4)."""
        if not (self.training and self.input_noise):
            return state
        frames = self.frames(state)
        noisy = torch.rand(len(frames), 1, *frames.shape[2:], device=state.device) < self.input_noise
        return self.join(torch.where(noisy, frames[..., ::4, ::4].median(), frames), state[:, -1])

    def frames(self, state: Tensor) -> Tensor:
        """Return a state's stack of frames, (B, frame_stack * C, H, W) uint8."""
        return state[:, :-1].unflatten(1, self.feature_shape)

    def newest(self, state: Tensor) -> Tensor:
        """Return a state's newest frame, (B, C, H, W) uint8."""
        return self.frames(state)[:, -self.channels :]

    def join(self, frames: Tensor, action: Tensor) -> Tensor:
        """Make states of stacks (..., frame_stack * C, H, W) and of the actions (...,) that led to them."""
        return torch.cat([frames.flatten(-3), action[..., None].to(torch.uint8)], dim=-1)

    def append(self, state: Tensor, action: Tensor, frame: Tensor) -> Tensor:
        """Drop the oldest frame of the stack and append the predicted one, and remember the action."""
        action = action.argmax(dim=1) if action.is_floating_point() else action
        return self.join(torch.cat([self.frames(state)[:, self.channels :], self.draw(frame)], dim=1), action)

    def draw(self, frame: Tensor) -> Tensor:
        """Return the predicted frame, (B, C, H, W) uint8."""
        if self.frame.loss == "l2":
            return (frame.clamp(0, 1) * 255).round().to(torch.uint8)
        if self.pixel_temperature == 0:
            return self.palette[frame.max(dim=1).indices]  # several times quicker than argmax
        probabilities = (frame / self.pixel_temperature).softmax(dim=1).movedim(1, -1)
        return self.palette[torch.multinomial(probabilities.flatten(0, -2), 1).view(probabilities.shape[:-1])]

    @property
    def pixel_temperature(self) -> float:
        """Of sampled pixels."""
        return self.temperature

    def encode(self, batch: Batch) -> Tensor:
        """Return the frame stacks, each with the action that led to it."""
        assert batch.observation is not None
        return self.join(batch.observation, batch.previous_action())

    def initial(self, batch_size: int) -> Tensor:
        """Return black stacks that action 0 led to."""
        return torch.zeros(batch_size, *self.state_shape, dtype=torch.uint8, device=self.device)

    def observe(self, state: Tensor, action: Tensor, observation: Tensor, is_first: Tensor) -> Tensor:
        """Return the frame stack that was observed, with the action that led to it."""
        return self.join(observation, action.masked_fill(is_first, 0))

    def step(self, state: Tensor, action: Tensor) -> Step:
        """Predict one step; a categorical reward is the expected sign."""
        frame, reward, continuation = self.predict(state, action)
        expected = self.outcomes.expected_reward(reward)
        return Step(self.append(state, action, frame), expected, continuation.sigmoid())

    def features(self, state: Tensor) -> Tensor:
        """Return the stack in [0, 1]."""
        return self.frames(state).float() / 255

    def decode(self, state: Tensor) -> Tensor:
        """Return the newest frame in [0, 1], (B, C, H, W)."""
        return self.newest(state).float() / 255
