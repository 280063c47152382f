"""The identity as world model: policies learn model-free from the observations."""

from __future__ import annotations

import torch
from torch import Tensor

from modules.batch import Batch
from modules.world_model import Loss, Spec, WorldModel


class IdentityModel(WorldModel):
    """A world model whose state is the observation. It predicts nothing, so it cannot dream."""

    def __init__(self) -> None:
        super().__init__()

    def build(self, spec: Spec) -> None:
        """Set the state shape to the shape of a frame stack or of a vector."""
        first, *rest = spec.observation_shape
        self.pictures = bool(rest)
        self.state_shape = self.feature_shape = (spec.frame_stack * first, *rest)

    def loss(self, batch: Batch) -> Loss:
        """Return an empty loss: the model has no parameters."""
        return Loss(None, {})

    def encode(self, batch: Batch) -> Tensor:
        """Return the observations."""
        assert batch.observation is not None
        return batch.observation

    def initial(self, batch_size: int) -> Tensor:
        """Return zeros."""
        dtype = torch.uint8 if self.pictures else torch.float32
        return torch.zeros(batch_size, *self.state_shape, dtype=dtype, device=self.device)

    def observe(self, state: Tensor, action: Tensor, observation: Tensor, is_first: Tensor) -> Tensor:
        """Return the observation."""
        return observation

    def features(self, state: Tensor) -> Tensor:
        """Return pictures scaled to [0, 1]; return vectors unchanged."""
        return state.float() / 255 if self.pictures else state
