"""A policy that learns by gradients through the world model: backpropagation along its own dreams."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modules.batch import Batch
from modules.errors import UserError
from modules.imagination import frozen, imagine
from modules.layers.returns import lambda_returns, reach_weights, weighted_mean
from modules.policies.actor_critic import ActorCritic
from modules.world_model import Loss, WorldModel


class Pathwise(ActorCritic):
    """Climbs the gradient of its dreams' lambda-returns, through the model's states, rewards and continuations.

    This is the dynamics backpropagation of Dreamer (Hafner et al. 2020, equation 7), with straight-through gradients
    for discrete actions (Hafner et al. 2021, section 2.3). It dreams by itself from states of real rows that are not
    the last of an episode: `policy_learns_from: imagined`. The model must be differentiable.

    Args:
        horizon: number of steps of a dream; gradients pass through all of them.
        num_dreams: number of dreams per update, drawn from the states of the real rows; null dreams from all of them.
        **kwargs: arguments of every actor-critic.
    """

    imagines = True
    differentiates = True

    def __init__(self, horizon: int = 10, num_dreams: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if min(horizon, 1 if num_dreams is None else num_dreams) < 1:
            raise UserError(f"Pathwise needs horizon and num_dreams of at least 1: got {horizon} and {num_dreams}")
        self.horizon, self.num_dreams = horizon, num_dreams

    def loss(self, batch: Batch, model: WorldModel) -> Loss:
        """Return the negated returns of dreams, the critic's squared error and the entropy bonus as one sum."""
        starts = self.starts(batch)
        if not len(starts):
            return Loss(None, {})
        dream = imagine(model, self, starts, self.horizon, gradient=True)
        has_successor = dream.has_successor()
        with frozen(self):  # the actor must not raise its returns by changing the critic
            values = self.values(dream, model)
        returns = lambda_returns(
            self.rewards(dream), dream.continuation, has_successor, values, self.discount, self.lambda_
        )
        # Detached: the returns of earlier steps already hold the gradient of reaching a step.
        weights = reach_weights(dream.continuation, has_successor).detach()
        gain = weighted_mean(returns, weights)
        actor = torch.distributions.Categorical(logits=dream.extras["logits"][:, :-1], validate_args=False)
        entropy = weighted_mean(actor.entropy(), weights)
        seen = dream.map(Tensor.detach)
        critic = 0.5 * weighted_mean((self.values(seen, model)[:, :-1] - returns.detach()) ** 2, weights)
        total = -gain - self.entropy_coefficient * entropy + self.value_coefficient * critic
        logs = {"loss": total, "return": gain, "value_loss": critic, "entropy": entropy}
        return Loss(total, {name: value.detach() for name, value in logs.items()})

    def starts(self, batch: Batch) -> Tensor:
        """Return the states (N, *state_shape) that dreams start from."""
        assert batch.state is not None
        states = batch.state[~batch.is_last].detach()
        if self.num_dreams is not None and self.num_dreams < len(states):
            states = states[torch.randperm(len(states), device=states.device)[: self.num_dreams]]
        return states

    def values(self, dream: Batch, model: WorldModel) -> Tensor:
        """Return the critic's values (B, T) of a dream's states."""
        assert dream.state is not None
        with frozen(model):
            _, values = self(model.features(dream.state.flatten(0, 1)))
        return values.unflatten(0, dream.shape)
