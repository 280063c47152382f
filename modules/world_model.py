"""The contract of every world model."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from modules.batch import Batch
from modules.errors import UserError
from modules.learner import Learner, Loss, Spec, prefixed
from modules.optimization import Optimization


class Step(NamedTuple):
    """The predicted outcome of an action a_t, read off the state after it; reward and continuation are row t's."""

    state: Tensor
    """(B, *state_shape): state after the action."""
    reward: Tensor
    """(B,): expected reward."""
    continuation: Tensor
    """(B,): probability that the episode goes on; ones if the model does not predict it."""


class WorldModel(Learner):
    """A learned world model: its whole state is one tensor with a leading batch dimension.

    A subclass builds its networks in `build` and returns its loss in `loss`. On its own a world model is a
    LightningModule that the Trainer fits. Inside an Agent only the methods of the contract run, so these methods must
    not use hooks or `self.log`.

    Args:
        optimization: optimizer, learning rate and schedule of the model; an agent's policy shares the optimizer.
    """

    state_shape: tuple[int, ...]
    feature_shape: tuple[int, ...]
    capabilities: frozenset[str] = frozenset()
    """Subset of {step, reward, decode, gradient} that the model supports."""
    temperature: float = 0.0
    """Sampling temperature of `step`; 0 takes the mode."""
    max_horizon: int | None = None
    """Largest number of steps of a dream; None means no limit."""
    debug: ClassVar[dict[str, Any]] = {}
    """Constructor arguments of a debug run: numbers are upper limits, anything else replaces what was given."""
    capturable: bool = False
    """Whether a CUDA graph may replay `step` and the policy: their control flow must not depend on tensor values."""

    def __init__(self, optimization: Optimization = Optimization()) -> None:
        super().__init__()
        self.optimization = optimization
        self.updates = 0
        """Number of optimizer steps so far."""

    # The contract.

    def build(self, spec: Spec) -> None:
        """Build the networks and set `state_shape` and `feature_shape`."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> Loss:
        """Return the loss on real rows."""
        raise NotImplementedError

    def encode(self, batch: Batch) -> Tensor:
        """Return the states (B, T, *state_shape) of real rows. The default scans `observe` over time."""
        state = self.initial(batch.shape[0])
        previous_action = batch.previous_action()
        states = []
        assert batch.observation is not None
        for t in range(batch.shape[1]):
            state = self.observe(state, previous_action[:, t], batch.observation[:, t], batch.is_first[:, t])
            states.append(state)
        return torch.stack(states, dim=1)

    def initial(self, batch_size: int) -> Tensor:
        """Return the states (batch_size, *state_shape) before the first observation."""
        raise NotImplementedError

    def observe(self, state: Tensor, action: Tensor, observation: Tensor, is_first: Tensor) -> Tensor:
        """Return the state after observation o_t; action a_{t-1}, taken in `state`, led to o_t."""
        raise NotImplementedError

    def step(self, state: Tensor, action: Tensor) -> Step:
        """Predict the outcome of actions: (B,) int64, or (B, A) float weights for gradients."""
        raise NotImplementedError

    def features(self, state: Tensor) -> Tensor:
        """Return the input of a policy, (B, *feature_shape)."""
        return state

    def decode(self, state: Tensor) -> Tensor:
        """Return the newest frame in [0, 1] or the observed vector, (B, *observation_shape)."""
        raise NotImplementedError

    def predicted_reward(self, reward: Tensor) -> Tensor:
        """Return raw rewards (...) as `step` predicts them: their signs, clipped, or, by default, as they are."""
        return reward

    def refit(self, batch: Batch, validation_windows: Batch | None = None) -> None:
        """Fit the parts that gradient descent does not train: normalisers, palettes, elites, processes, trees.

        Args:
            batch: real training rows.
            validation_windows: rows of the validation environments; None if there are none.
        """

    def updated(self) -> None:
        """Increment `updates`; called after every optimizer step. Override it to update target networks."""
        self.updates += 1

    def get_extra_state(self) -> dict[str, int]:
        """Return the state that checkpoints store beside the weights."""
        return {"updates": self.updates}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Restore the number of updates."""
        self.updates = state["updates"]

    def require(self, *capabilities: str, by: str) -> None:
        """Check that the model has the capabilities that a caller needs.

        Args:
            *capabilities: names among "step", "reward", "decode" and "gradient".
            by: name of the caller, for the error message.

        Raises:
            UserError: the model lacks one of the capabilities.
        """
        if missing := [name for name in capabilities if name not in self.capabilities]:
            predicted = {"step": "states", "reward": "rewards", "decode": "pictures", "gradient": "derivatives"}
            wanted = " and ".join(predicted[name] for name in capabilities)
            raise UserError(
                f"{by} needs a world model that predicts {wanted}: {type(self).__name__} has no "
                f"{' and no '.join(missing)}"
            )

    def check_horizon(self, horizon: int) -> None:
        """Raise a UserError if a horizon exceeds `max_horizon`."""
        if self.max_horizon is not None and horizon > self.max_horizon:
            raise UserError(
                f"{type(self).__name__} dreams {self.max_horizon} steps at most: horizon of {horizon} is too long"
            )

    def gradient_parts(self) -> list[torch.nn.Module]:
        """Return the parts with a loss of their own; the gradient of each part is clipped by its own norm."""
        return [self]

    def nonfinite_reason(self) -> str:
        """Return a more specific reason for a non-finite last loss, or ""."""
        return ""

    # Training without an agent.

    policy = None

    @property
    def world_model(self) -> WorldModel:  # type: ignore[override]
        """Return the model itself."""
        return self

    def build_from(self, spec: Spec) -> None:
        """Build the networks for a spec; checkpoints store the spec."""
        self.build(spec)
        self.spec = spec

    def learn(self, batch: dict[str, Batch]) -> Loss:
        """Learn from real rows: from those under "model" if there are any."""
        loss = self.loss(batch.get("model", batch["real"]))
        return loss._replace(logs=prefixed("train", loss.logs))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups."""
        return self.optimization.groups(self.parameters())
