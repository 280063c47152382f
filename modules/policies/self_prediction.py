"""Self-predictive representations: an encoder whose latents a transition model can predict (Schwarzer et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.errors import UserError, check_range
from modules.layers.networks import minmax
from modules.layers.residual import Transition
from modules.policies.q_network import QNetwork


@dataclass(frozen=True)
class SelfPrediction:
    """An auxiliary loss of Q-learning: a latent model predicts the encoder's own future outputs.

    Args:
        steps: number K of steps that the latent model unrolls.
        weight: weight of the mean over K steps of the squared distance of unit vectors, 2 - 2 cosine; 5 in the paper's
            code and in BBF.
        blocks: number of residual blocks of the latent model, after a first convolution.
    """

    steps: int = 5
    weight: float = 5.0
    blocks: int = 1

    def __post_init__(self) -> None:
        check_range("self_prediction.steps", self.steps, 1)
        check_range("self_prediction.weight", self.weight, 0)
        check_range("self_prediction.blocks", self.blocks, 0)


class SelfPredictor(nn.Module):
    """The transition model and the predictor beside a Q-network.

    Args:
        network: Q-network whose latents are predicted.
        blocks: number of residual blocks of the transition model.

    Raises:
        UserError: the network sees vectors, or has no fully connected layer, by which latents are projected.
    """

    def __init__(self, network: QNetwork, blocks: int) -> None:
        super().__init__()
        if len(network.latent_shape) != 3:
            raise UserError("self_prediction needs an encoder of pictures: set it to null for vectors")
        if not len(network.hidden):
            raise UserError("self_prediction needs a fully connected layer: set network.hidden to at least one width")
        self.num_actions, self.normalise = network.num_actions, network.normalise
        self.transition = Transition(network.latent_shape, network.num_actions, blocks, norm="layer")
        width = network.hidden[0].out_features
        assert isinstance(width, int)
        self.predictor = nn.Linear(width, width)

    def forward(self, network: QNetwork, latent: Tensor, actions: Tensor) -> Tensor:
        """Unroll latents (B, *latent_shape) under actions (B, K) int64, and predict projections (B, K, P)."""
        latents = []
        for action in F.one_hot(actions, self.num_actions).float().unbind(1):
            latent = self.transition(latent, action)
            latent = minmax(latent) if self.normalise else latent
            latents.append(latent)
        unrolled = torch.stack(latents, dim=1)
        return self.predictor(network.project(unrolled.flatten(0, 1))).unflatten(0, unrolled.shape[:2])


def prediction_losses(predicted: Tensor, seen: Tensor, has_successor: Tensor) -> Tensor:
    """Return the loss of each window (B,): 2 - 2 cosine, averaged over K steps, 0 beyond the end of an episode.

    Args:
        predicted: (B, K, P) predicted projections.
        seen: (B, K, P) projections of the observed latents, without gradient.
        has_successor: (B, K) bool: the step stays in its episode.
    """
    distances = 2 - 2 * F.cosine_similarity(predicted.float(), seen.float(), dim=2)
    return (distances * has_successor.cumprod(dim=1)).mean(dim=1)
