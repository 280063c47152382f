"""Policy gradients with a value baseline: PPO, and REINFORCE with lambda-returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from modules.batch import Batch
from modules.errors import UserError, check_range
from modules.layers.networks import body
from modules.layers.returns import lambda_returns, reach_weights, weighted_mean
from modules.optimization import Optimization
from modules.policies.policy import Policy
from modules.world_model import Loss, WorldModel


class ActorCritic(Policy):
    """An actor and a critic; subclasses define the loss.

    Args:
        hidden: widths of the fully connected layers.
        channels: channels of the three convolutions for pictures.
        activation: activation function: "relu", "silu" or "tanh".
        layer_norm: apply layer normalisation in the fully connected layers.
        shared: share one feature network between actor and critic.
        discount: discount factor gamma.
        lambda_: lambda of the returns, from bootstrapping after one step (0) to only at the end of the window (1).
        entropy_coefficient: coefficient of the entropy bonus.
        value_coefficient: coefficient of the critic's loss.
        optimization: learning rate, schedule and weight decay of the policy; its `optimizer` must be the world model's.
        gradient_clip_val: largest norm of the policy's gradient; null does not clip it.
        clip_rewards: learn from rewards clipped to [-1, 1].
    """

    def __init__(
        self,
        hidden: Sequence[int] = (64, 64),
        channels: Sequence[int] = (32, 64, 64),
        activation: Literal["relu", "silu", "tanh"] = "tanh",
        layer_norm: bool = False,
        shared: bool = False,
        discount: float = 0.99,
        lambda_: float = 0.95,
        entropy_coefficient: float = 0.01,
        value_coefficient: float = 0.5,
        optimization: Optimization = Optimization(lr=3e-4),
        gradient_clip_val: float | None = 0.5,
        clip_rewards: bool = False,
    ) -> None:
        super().__init__(optimization, gradient_clip_val, clip_rewards)
        for name, value in (("discount", discount), ("lambda_", lambda_)):
            check_range(f"{type(self).__name__}.{name}", value, 0, 1)
        for name, value in (("entropy_coefficient", entropy_coefficient), ("value_coefficient", value_coefficient)):
            check_range(f"{type(self).__name__}.{name}", value)
        self.hidden, self.channels, self.activation, self.layer_norm = hidden, channels, activation, layer_norm
        self.shared = shared
        self.discount, self.lambda_ = discount, lambda_
        self.entropy_coefficient, self.value_coefficient = entropy_coefficient, value_coefficient

    def build(self, feature_shape: tuple[int, ...], num_actions: int) -> None:
        """Build both networks; the actor is nearly uniform at the start."""

        def network(outputs: int, gain: float) -> tuple[nn.Module, nn.Linear]:
            torso, width = body(feature_shape, self.hidden, self.channels, self.activation, self.layer_norm)
            head = nn.Linear(width, outputs)
            for module in [*torso, head]:
                if isinstance(module, nn.Linear | nn.Conv2d):
                    nn.init.orthogonal_(module.weight, gain if module is head else 2**0.5)
                    nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            return torso, head

        self.actor_body, self.actor_head = network(num_actions, 0.01)
        critic_body, self.critic_head = network(1, 1.0)
        self.critic_body = None if self.shared else critic_body

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the actor's logits (B, A) and the critic's values (B,)."""
        seen = self.actor_body(features)
        valued = seen if self.critic_body is None else self.critic_body(features)
        with torch.autocast(seen.device.type, enabled=False):  # bfloat16 is too coarse for values
            dtype = self.actor_head.weight.dtype
            return self.actor_head(seen.to(dtype)), self.critic_head(valued.to(dtype))[:, 0]

    def evaluate(self, batch: Batch, model: WorldModel) -> tuple[torch.distributions.Categorical, Tensor]:
        """Return the actor's distributions and the critic's values over all rows, (B, T)."""
        logits, values = self(self.features(batch, model))
        actor = torch.distributions.Categorical(logits=logits.unflatten(0, batch.shape), validate_args=False)
        return actor, values.unflatten(0, batch.shape)


class PPO(ActorCritic):
    """Proximal policy optimisation (Schulman et al. 2017, equations 7 and 9) with GAE.

    PPO learns a few times from each row, whose `log_prob` and `value` come from its present or an earlier actor.

    Args:
        clip_range: largest distance of the ratio of new to old probabilities from 1.
        **kwargs: arguments of every actor-critic.
    """

    extras = ("log_prob", "value")

    def __init__(self, clip_range: float = 0.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_range("PPO.clip_range", clip_range, 0, above=True)
        self.clip_range = clip_range

    def loss(self, batch: Batch, model: WorldModel) -> Loss:
        """Return the clipped surrogate, the critic's squared error and the entropy bonus as one sum."""
        if missing := set(self.extras) - batch.extras.keys():
            raise UserError(f"PPO needs columns that its actor writes, but rows have no {', '.join(sorted(missing))}")
        old_log_prob, old_values = batch.extras["log_prob"], batch.extras["value"]
        has_successor = batch.has_successor()
        returns = lambda_returns(
            self.rewards(batch), batch.continuation, has_successor, old_values, self.discount, self.lambda_
        )
        weights = reach_weights(batch.continuation, has_successor) * batch.weight[:, :-1]
        advantage = normalised(returns - old_values[:, :-1], weights)
        actor, values = self.evaluate(batch, model)
        ratio = (actor.log_prob(batch.action) - old_log_prob)[:, :-1].exp()
        clipped = ratio.clamp(1 - self.clip_range, 1 + self.clip_range)
        surrogate = weighted_mean(torch.minimum(ratio * advantage, clipped * advantage), weights)
        value_loss = 0.5 * weighted_mean((values[:, :-1] - returns) ** 2, weights)
        entropy = weighted_mean(actor.entropy()[:, :-1], weights)
        loss = -surrogate + self.value_coefficient * value_loss - self.entropy_coefficient * entropy
        parts = {
            "loss": loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "value": weighted_mean(values[:, :-1], weights),
            "clipped": weighted_mean((ratio != clipped).float(), weights),
        }
        return Loss(loss, {name: part.detach() for name, part in parts.items()})


class Reinforce(ActorCritic):
    """REINFORCE (Williams 1992) with lambda-returns and the critic as a baseline.

    Dreamer learns discrete actions this way (Hafner et al. 2021). REINFORCE is on-policy: it learns once from rows of
    the present policy.
    """

    def loss(self, batch: Batch, model: WorldModel) -> Loss:
        """Return the policy gradient's surrogate, the critic's squared error and the entropy bonus as one sum."""
        actor, values = self.evaluate(batch, model)
        has_successor = batch.has_successor()
        returns = lambda_returns(
            self.rewards(batch), batch.continuation, has_successor, values.detach(), self.discount, self.lambda_
        )
        weights = reach_weights(batch.continuation, has_successor) * batch.weight[:, :-1]
        advantage = normalised(returns - values[:, :-1].detach(), weights)
        gain = weighted_mean(actor.log_prob(batch.action)[:, :-1] * advantage, weights)
        value_loss = 0.5 * weighted_mean((values[:, :-1] - returns) ** 2, weights)
        entropy = weighted_mean(actor.entropy()[:, :-1], weights)
        loss = -gain + self.value_coefficient * value_loss - self.entropy_coefficient * entropy
        parts = {
            "loss": loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "value": weighted_mean(values[:, :-1], weights),
        }
        return Loss(loss, {name: part.detach() for name, part in parts.items()})


def normalised(advantage: Tensor, weights: Tensor) -> Tensor:
    """Return advantages (B, T) with weighted mean 0 and standard deviation 1."""
    mean = weighted_mean(advantage, weights)
    variance = weighted_mean((advantage - mean) ** 2, weights)
    return (advantage - mean) / (variance + 1e-8).sqrt()
