"""The controller of World Models: one linear map from features to actions (Ha & Schmidhuber 2018, section 3.3)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from modules.batch import Batch
from modules.errors import UserError, check_range
from modules.policies.policy import Policy
from modules.world_model import Loss, WorldModel


class LinearController(Policy):
    """Takes the action with the largest score W f + b; `pipelines.callbacks.dreaming.evolve.Evolve` evolves W and b.

    Args:
        epsilon: probability of a random action when actions are sampled, such as in data collection.
    """

    weight: Tensor
    """(A, D + 1): W, with b in the last column."""

    def __init__(self, epsilon: float = 0.0) -> None:
        super().__init__()
        check_range("Linear.epsilon", epsilon, 0, 1)
        self.epsilon = epsilon

    def build(self, feature_shape: tuple[int, ...], num_actions: int) -> None:
        """Set W and b to zeros: the controller takes action 0 until evolution finds a better one."""
        self.register_buffer("weight", torch.zeros(num_actions, math.prod(feature_shape) + 1))

    @property
    def vector(self) -> Tensor:
        """Return the evolved parameters, (A * (D + 1),)."""
        return self.weight.flatten()

    def adopt(self, vector: Tensor) -> None:
        """Set the parameters from a vector (A * (D + 1),)."""
        self.weight.copy_(vector.view_as(self.weight))

    def scores(self, vectors: Tensor, features: Tensor) -> Tensor:
        """Score the actions of a whole population at once.

        Args:
            vectors: (P, A * (D + 1)) parameters, one vector per controller.
            features: (P, E, *feature_shape) features, E states per controller.

        Returns:
            (P, E, A)
        """
        weights = vectors.unflatten(1, self.weight.shape).mT  # (P, D + 1, A)
        return torch.baddbmm(weights[:, -1:], features.flatten(2), weights[:, :-1])

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logarithms of the epsilon-greedy probabilities (B, A), and values of 0."""
        scores = self.scores(self.vector[None], features[None].float())[0]
        best = torch.zeros_like(scores).scatter_(1, scores.argmax(dim=1, keepdim=True), 1.0)
        probabilities = (1 - self.epsilon) * best + self.epsilon / scores.shape[1]
        return probabilities.clamp(min=1e-12).log(), scores.new_zeros(len(scores))

    def loss(self, batch: Batch, model: WorldModel) -> Loss:
        """Return an empty loss: evolution finds the parameters."""
        return Loss(None, {})

    def check(self, weight: Tensor, source: str) -> None:
        """Raise a UserError unless a weight has this controller's number of actions and features."""
        (actions, features), (own_actions, own_features) = weight.shape, self.weight.shape
        if weight.shape != self.weight.shape:
            raise UserError(
                f"{source} has {actions} actions and {features - 1} features, but this world has {own_actions} actions "
                f"and its world model {own_features - 1} features: a controller fits only games with its action set"
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}weight" in state_dict:
            self.check(state_dict[f"{prefix}weight"], "the controller in the checkpoint")
        super()._load_from_state_dict(state_dict, prefix, *args)
