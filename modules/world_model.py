"""The contract of every world model."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from modules.batch import Batch
from modules.errors import UserError
from modules.learner import Learner, Loss, Spec, prefixed
from modules.optimization import Optimization


class Step(NamedTuple):
    """What an action did, read off the state after it: the targets are row t's."""

    state: Tensor
    """(B, *state_shape)"""
    reward: Tensor
    """(B,) expected."""
    continuation: Tensor
    """(B,) probability that the episode goes on; ones where it is not modelled."""


class WorldModel(Learner):
    """A learned world: its whole state is one tensor with a leading batch dimension.

    A subclass builds its networks in `build`, and trains through `loss`. Alone it is a LightningModule that the
    Trainer fits; inside an Agent only the methods of the contract run, so they use no hooks and no `self.log`.

    Args:
        optimization: optimizer, which an agent's policy shares, and learning rate and schedule of the model.
    """

    state_shape: tuple[int, ...]
    feature_shape: tuple[int, ...]
    capabilities: frozenset[str] = frozenset()
    """Of {step, reward, decode, gradient}: what callers may ask for."""
    temperature: float = 0.0
    """Of sampled steps; 0 is the mode."""
    max_horizon: int | None = None
    """Steps that it can dream at most; null where there is no limit."""
    capturable: bool = False
    """Whether a CUDA graph may replay its step and its policy: they always do the same, whatever the numbers are."""

    def __init__(self, optimization: Optimization = Optimization()) -> None:
        super().__init__()
        self.optimization = optimization
        self.updates = 0
        """Optimizer steps that were made."""

    # The contract.

    def build(self, spec: Spec) -> None:
        """Make the networks, and set `state_shape` and `feature_shape`."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> Loss:
        """Return the loss on real rows."""
        raise NotImplementedError

    def encode(self, batch: Batch) -> Tensor:
        """Return the states (B, T, *state_shape) of real rows; a scan over `observe` unless a model knows better."""
        state = self.initial(batch.shape[0])
        previous_action = batch.previous_action()
        states = []
        assert batch.observation is not None
        for t in range(batch.shape[1]):
            state = self.observe(state, previous_action[:, t], batch.observation[:, t], batch.is_first[:, t])
            states.append(state)
        return torch.stack(states, dim=1)

    def initial(self, batch_size: int) -> Tensor:
        """Return the state (batch_size, *state_shape) of a model that has seen nothing yet."""
        raise NotImplementedError

    def observe(self, state: Tensor, action: Tensor, observation: Tensor, is_first: Tensor) -> Tensor:
        """Return the state after observation o_t, which action a_{t-1} led to from `state`."""
        raise NotImplementedError

    def step(self, state: Tensor, action: Tensor) -> Step:
        """Predict what an action does: (B,) int64, or (B, A) float weights to differentiate."""
        raise NotImplementedError

    def features(self, state: Tensor) -> Tensor:
        """Return what a policy sees, (B, *feature_shape)."""
        return state

    def decode(self, state: Tensor) -> Tensor:
        """Return the newest frame in [0, 1], or the vector, (B, *observation_shape)."""
        raise NotImplementedError

    def refit(self, batch: Batch, validation_windows: Batch | None = None) -> None:
        """Fit all that is not learned by gradient descent: normalisers, palettes, elites, processes, trees.

        Args:
            batch: real training rows.
            validation_windows: rows of the validation environments, where there are any.
        """

    def updated(self) -> None:
        """Count an optimizer step; whatever else follows from one, such as target networks, is a subclass's to add."""
        self.updates += 1

    def get_extra_state(self) -> dict[str, int]:
        """Return what checkpoints keep beside the weights."""
        return {"updates": self.updates}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Go on counting where it stopped."""
        self.updates = state["updates"]

    def require(self, *capabilities: str, by: str) -> None:
        """Check that the model can do what somebody needs.

        Args:
            *capabilities: names among "step", "reward", "decode" and "gradient".
            by: who needs them, to say so.

        Raises:
            UserError: the model lacks one of them.
        """
        if missing := [name for name in capabilities if name not in self.capabilities]:
            predicted = {"step": "states", "reward": "rewards", "decode": "pictures", "gradient": "derivatives"}
            wanted = " and ".join(predicted[name] for name in capabilities)
            raise UserError(
                f"{by} needs a world model that predicts {wanted}: {type(self).__name__} has no "
                f"{' and no '.join(missing)}"
            )

    def check_horizon(self, horizon: int) -> None:
        """Raise a UserError where the model cannot dream so many steps."""
        if self.max_horizon is not None and horizon > self.max_horizon:
            raise UserError(
                f"{type(self).__name__} dreams {self.max_horizon} steps at most: horizon of {horizon} is too long"
            )

    def gradient_parts(self) -> list[torch.nn.Module]:
        """Return the parts whose gradients are clipped, each by its own norm: those that learn from the same loss."""
        return [self]

    def nonfinite_reason(self) -> str:
        """Name what went wrong in the last loss, where it is not finite and the model knows better; else ""."""
        return ""

    # Trained alone.

    policy = None

    @property
    def world_model(self) -> WorldModel:  # type: ignore[override]
        """The model itself."""
        return self

    def build_from(self, spec: Spec) -> None:
        """Build for a world; checkpoints keep its spec."""
        self.build(spec)
        self.spec = spec

    def learn(self, batch: dict[str, Batch]) -> Loss:
        """Learn from real rows."""
        loss = self.loss(batch["real"])
        return loss._replace(logs=prefixed("train", loss.logs))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups."""
        return self.optimization.groups(self.parameters())
