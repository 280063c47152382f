"""SimPLe's deterministic world model of frames (Kaiser et al. 2019, section 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    """How pixels are predicted, and the loss of a predicted frame.

    Args:
        loss: loss of a pixel: "categorical" classifies it into levels by a softmax, "l2" is the squared error.
        levels: number K of grey or colour levels that a pixel is classified into, 256 in the paper and at most. Fewer
            than 256 levels are fitted to the pixels of the game by `refit`.
        clip: loss of a pixel below which its gradient is 0, the paper's clipped loss max(loss, clip): 0.03 nats in the
            paper. The unit is nats, or squared error for "l2".
        motion_weight: weight in the loss of a pixel that differs between the last frame and the next, relative to all
            other pixels; 1 in the paper.
        copy_bias: initial value of a learned logit that is added to the pixel's present level; null adds nothing, as
            in the paper. With "l2" the network predicts the change of the pixel, unless it is null.
    """

    loss: Literal["categorical", "l2"] = "categorical"
    levels: int = 16
    clip: float = 0.01
    motion_weight: float = 10.0
    copy_bias: float | None = 4.0


@dataclass(frozen=True)
class Unroll:
    """How far the training loss unrolls the model on its own predictions.

    Args:
        steps: number of steps that the training loss predicts from one recorded state.
        warmup: number of updates over which the unrolled steps double from 1 up to `steps`; 0 unrolls all at once.
        scheduled_sampling: number of updates over which the probability that a step starts from the model's own
            prediction, instead of the recorded frame, rises linearly from 0 to 1; 0 keeps the probability at 1. 40,000
            in the paper.
    """

    steps: int = 4
    warmup: int = 0
    scheduled_sampling: int = 0

    def horizon(self, updates: int) -> int:
        """Return the number of unrolled steps after a number of updates."""
        progress = min(1.0, updates / self.warmup) if self.warmup else 1.0
        return min(self.steps, 2 ** int(progress * self.steps.bit_length()))

    def own_predictions(self, updates: int) -> float:
        """Return the probability, after a number of updates, that a step starts from the model's own prediction."""
        return min(1.0, updates / self.scheduled_sampling) if self.scheduled_sampling else 1.0


class Prediction(NamedTuple):
    """What the networks predict of a transition."""

    frame: Tensor
    """The next frame's logits (B, K, C, H, W), or its values (B, C, H, W) in [0, 1]."""
    drawn: Tensor
    """The next frame, (B, C, H, W) uint8."""
    reward: Tensor
    """The reward's logits (B, 3) or value (B, 1)."""
    continuation: Tensor
    """The continuation's logit (B,)."""


class UNet(WorldModel):
    """A convolutional network that predicts frame, reward and continuation from a stack of frames and an action.

    The state is the stack and the action that led to it, (frame_stack * C * H * W + 1,) uint8. The previous action is
    needed because an action can take effect a step late, as the paddle of Pong does (docs/unet.md). `step` drops the
    oldest frame and appends the predicted one. The sign of the reward is predicted, unless `reward_loss` is "real".
    Reward and continuation are predicted by a separate network, from the last frames, the drawn next frame and the
    features that the next frame was decoded from.

    Args:
        size: size of the network: "debug", "tiny" (for frames of 42 x 42, a thousand a second on one thread), "small"
            (trains in minutes on a CPU), "medium", "simple" (the paper's).
        frame: levels of a pixel, and loss of the predicted frame.
        reward_loss: loss of the reward: "categorical" classifies its sign as -1, 0 or 1 by a softmax, "real" is the
            squared error of its value.
        unroll: how far the training loss unrolls the model on its own predictions.
        input_noise: fraction of input pixels that are replaced by the batch's median colour, in training.
        temperature: softmax temperature of the pixels that a step draws; 0 takes the most probable level.
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
        self.unroll = unroll
        self.input_noise = input_noise
        check_range(f"{type(self).__name__}.temperature", temperature, 0)
        self.temperature = temperature
        self.compile_network = compile

    def build(self, spec: Spec) -> None:
        """Create the networks for frames (C, H, W)."""
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
        """Create the networks; the decoder is conditioned on the actions and on `latents` further numbers."""
        conditions = 2 * self.num_actions
        outputs = self.channels * (self.frame.levels if self.frame.loss == "categorical" else 1)
        self.encoder = Encoder(self.feature_shape[0], height, width, conditions, size)
        self.decoder = Decoder(outputs, height, width, conditions + latents, size)
        stacked = self.feature_shape[0] + self.channels
        painted = size.shapes(height, width)[0]
        self.outcomes = Outcomes(stacked, painted, size.patch, conditions, self.reward_loss)

    def gradient_parts(self) -> list[nn.Module]:
        """Return the network of the frames, and that of reward and continuation, whose gradient is much smaller."""
        painting = [child for child in self.children() if child is not self.outcomes]
        return [nn.ModuleList([*painting, nn.ParameterList(self._parameters.values())]), self.outcomes]

    def refit(self, batch: Batch, validation_windows: Batch | None = None) -> None:
        """Fit the levels to the game's pixels, and the initial biases of reward and continuation to their frequencies.

        Only a model without updates is fitted.
        """
        if self.updates:
            return  # the outputs of a trained network belong to the levels that it was trained with
        assert batch.observation is not None
        self.palette.copy_(fit_palette(batch.observation[:, :, -self.channels :], self.frame.levels))
        self.outcomes.start(batch)

    def loss_weights(self) -> dict[str, float]:
        """Return the weight of each loss in the total."""
        return {"frame": 1.0, "reward": 1.0, "continuation": 1.0}

    def loss(self, batch: Batch) -> Loss:
        """Unroll every segment of the windows from its first state, on the model's own predictions.

        The first row of a window gives the second row its previous action, and nothing else, because the action before
        the first row is unknown. The last frame of an episode is no target: no action follows it, and the emulator does
        not show it as it was.
        """
        if batch.shape[1] < 3:
            raise UserError(
                f"the UNet needs windows of at least 3 rows: data.sampling.sequence_length is {batch.shape[1]}"
            )
        states = self.encode(batch)
        horizon = min(self.unroll.horizon(self.updates), batch.shape[1] - 2)
        segments = batch.replace(state=states)[:, 1:].segments(horizon + 1)
        assert segments.state is not None
        # True where step t has a recorded successor: no episode ended and no run was cut up to it.
        reached = segments.has_successor().cumprod(dim=1).float()
        drawn = reached * segments.continuation[:, :-1]
        judged = reached * segments.weight[:, :-1]
        masks = {"reward": judged, "continuation": judged}
        weights = self.loss_weights()
        state = segments.state[:, 0]
        totals = dict.fromkeys(weights, torch.zeros((), device=state.device))
        for t in range(horizon):
            next_frame, losses = self.transition_losses(state, segments[:, t : t + 2], drawn[:, t] > 0)
            totals = {name: totals[name] + (masks.get(name, drawn)[:, t] * losses[name]).sum() for name in weights}
            state = self.append(state, segments.action[:, t], next_frame)
            if self.training and self.unroll.scheduled_sampling:
                own = torch.rand(len(state), 1, device=state.device) < self.unroll.own_predictions(self.updates)
                state = torch.where(own, state, segments.state[:, t + 1])
        numbers = {"reward": reached, "continuation": reached}
        parts = {name: total / numbers.get(name, drawn).sum().clamp(min=1) for name, total in totals.items()}
        loss = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        logged = {name: value.detach() for name, value in {"loss": loss, **parts}.items()}
        return Loss(loss, {**logged, "horizon": torch.tensor(float(horizon), device=loss.device)}, states)

    def transition_losses(self, state: Tensor, rows: Batch, drawn: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Predict one step, and compute its losses against the recorded rows.

        Args:
            state: states (B, *state_shape) before the step.
            rows: recorded rows (B, 2): the row of `state`, and the next row.
            drawn: flags (B,) bool: the next row's frame is a true picture, not the last one of an episode.

        Returns:
            The drawn next frame (B, C, H, W) uint8, and the losses (B,) by the names in `loss_weights`.
        """
        prediction = self.predict(self.add_noise(state), rows.action[:, 0])
        return prediction.drawn, self.prediction_losses(prediction, state, rows)

    def prediction_losses(self, prediction: Prediction, state: Tensor, rows: Batch) -> dict[str, Tensor]:
        """Return the losses (B,) of a prediction against recorded rows (B, 2)."""
        assert rows.observation is not None
        target = rows.observation[:, 1, -self.channels :]
        return {
            "frame": self.frame_losses(prediction.frame, target, last=self.newest(state)),
            "reward": self.outcomes.reward_losses(prediction.reward, rows.reward[:, 0]),
            "continuation": self.outcomes.continuation_losses(prediction.continuation, rows.continuation[:, 0]),
        }

    def predict(self, state: Tensor, action: Tensor) -> Prediction:
        """Run the networks."""
        condition = self.condition(state, action)
        seen = self.encoder(self.standardized(self.frames(state)), condition)
        return self.complete(state, condition, *self.decoder(seen, condition))

    def condition(self, state: Tensor, action: Tensor) -> Tensor:
        """Return the weights of the action beside those of the previous action, (B, 2 A); an index becomes one-hot."""
        if not action.is_floating_point():
            action = F.one_hot(action, self.num_actions).float()
        return torch.cat([action, F.one_hot(state[:, -1].long(), self.num_actions)], dim=1)

    def standardized(self, frames: Tensor) -> Tensor:
        """Map uint8 frames (B, C, H, W) to float, standardised per sample."""
        pixels = frames.float() / 255
        scale, mean = torch.std_mean(pixels, dim=(1, 2, 3), keepdim=True)
        return (pixels - mean) / scale.clamp(min=1e-2)

    def complete(self, state: Tensor, condition: Tensor, frame: Tensor, painted: Tensor) -> Prediction:
        """Draw the next frame, and predict the reward and the continuation of the drawn transition.

        Args:
            state: states (B, *state_shape).
            condition: weights of the actions, (B, 2 A).
            frame: output of the decoder, (B, K * C, H, W) or (B, C, H, W).
            painted: the decoder's finest features, from which it computed the output.
        """
        frame, last = frame.float(), self.newest(state)
        if self.frame.loss == "categorical":
            frame = frame.unflatten(1, (self.frame.levels, self.channels))
            if self.frame.copy_bias is not None:
                level = self.level_of(last)[:, None]
                frame = frame.scatter_add_(1, level, self.stay.expand(level.shape))
        elif self.frame.copy_bias is not None:
            frame = frame + last.float() / 255
        drawn = self.draw(frame.detach())
        pictures = torch.cat([self.features(state), drawn.float() / 255], dim=1)
        return Prediction(frame, drawn, *self.outcomes(pictures, painted, condition))

    def frame_losses(self, frame: Tensor, target: Tensor, last: Tensor) -> Tensor:
        """Return the clipped loss (B,) of every frame: a mean over pixels, in which `motion_weight` weights changes."""
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
        """Replace a few pixels by the median colour, in training only (the paper's section 4)."""
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
        """Return the states of stacks (..., frame_stack * C, H, W) and of the actions (...,) that led to them."""
        return torch.cat([frames.flatten(-3), action[..., None].to(torch.uint8)], dim=-1)

    def append(self, state: Tensor, action: Tensor, drawn: Tensor) -> Tensor:
        """Return the next state: the stack without its oldest frame and with the predicted one, and the action."""
        action = action.argmax(dim=1) if action.is_floating_point() else action
        return self.join(torch.cat([self.frames(state)[:, self.channels :], drawn], dim=1), action)

    def draw(self, frame: Tensor) -> Tensor:
        """Return the predicted frame (B, C, H, W) uint8: drawn, or the most probable one at temperature 0."""
        if self.frame.loss == "l2":
            return (frame.clamp(0, 1) * 255).round().to(torch.uint8)
        if self.pixel_temperature == 0:
            return self.palette[frame.max(dim=1).indices]  # several times faster than argmax
        probabilities = (frame / self.pixel_temperature).softmax(dim=1).movedim(1, -1)
        return self.palette[torch.multinomial(probabilities.flatten(0, -2), 1).view(probabilities.shape[:-1])]

    @property
    def pixel_temperature(self) -> float:
        """Softmax temperature of the pixels that `step` draws."""
        return self.temperature

    def encode(self, batch: Batch) -> Tensor:
        """Return the states of a batch: its frame stacks, each with the action that led to it."""
        assert batch.observation is not None
        return self.join(batch.observation, batch.previous_action())

    def initial(self, batch_size: int) -> Tensor:
        """Return states of black frames and action 0."""
        return torch.zeros(batch_size, *self.state_shape, dtype=torch.uint8, device=self.device)

    def observe(self, state: Tensor, action: Tensor, observation: Tensor, is_first: Tensor) -> Tensor:
        """Return the states of observed frame stacks and of the actions that led to them."""
        return self.join(observation, action.masked_fill(is_first, 0))

    def step(self, state: Tensor, action: Tensor) -> Step:
        """Predict one step; with the "categorical" loss, the reward is the expected sign."""
        prediction = self.predict(state, action)
        expected = self.outcomes.expected_reward(prediction.reward)
        return Step(self.append(state, action, prediction.drawn), expected, prediction.continuation.sigmoid())

    def predicted_reward(self, reward: Tensor) -> Tensor:
        """Return the signs of rewards, or the rewards if the loss is "real"."""
        return self.outcomes.target(reward)

    def features(self, state: Tensor) -> Tensor:
        """Return the frame stacks as float in [0, 1], (B, frame_stack * C, H, W).

        Real frames are mapped to the palette of the drawn ones, so that a policy sees the same pictures in both.
        """
        frames = self.frames(state)
        if self.frame.loss == "categorical":
            frames = self.palette[self.level_of(frames)]
        return frames.float() / 255

    def decode(self, state: Tensor) -> Tensor:
        """Return the newest frames as float in [0, 1], (B, C, H, W)."""
        return self.newest(state).float() / 255
