"""What is thought of states before they are searched: networks, random play, or a mix of both."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from modules.policies.policy import Policy
from pipelines.search.contract import Evaluation


class Features(Protocol):
    """What a policy needs of a model."""

    def features(self, state: Tensor) -> Tensor:
        """Map states (B, *state_shape) to features (B, *feature_shape)."""
        ...


class NetworkEvaluator:
    """Prior and value by a policy on the features of a model's states.

    Args:
        model: a world model, or MuZero's networks.
        policy: prior and value.
    """

    def __init__(self, model: Features, policy: Policy) -> None:
        self.model = model
        self.policy = policy

    def __call__(self, states: Tensor) -> Evaluation:
        """Judge states (B, *state_shape)."""
        logits, value = self.policy(self.model.features(states))
        return Evaluation(logits.float(), value.float())
