"""What is thought of states before they are searched: networks, random play, or a mix of both."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from modules.errors import UserError, check_range
from modules.policies.policy import Policy
from pipelines.search.contract import Dynamics, Evaluate, Evaluation

ENDLESS = 100_000
"""Steps after which random play to the end is given up."""


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


class Uniform:
    """Knows nothing: every legal action alike, and the value 0.

    Args:
        dynamics: whose actions they are; where it has `legal_actions(states) -> (B, K)`, those alone.
        num_actions: A; null asks the dynamics for it.

    Raises:
        UserError: the dynamics do not say how many actions there are.
    """

    def __init__(self, dynamics: Dynamics, num_actions: int | None = None) -> None:
        self.listed = hasattr(dynamics, "legal_actions")
        self.num_actions: int | None = getattr(dynamics, "num_actions", None) if num_actions is None else num_actions
        if self.num_actions is None and not self.listed:
            raise UserError(f"{type(dynamics).__name__} does not say how many actions there are: give num_actions")
        self.dynamics = dynamics

    def __call__(self, states: Any) -> Evaluation:
        """Judge states (B, ...)."""
        actions = self.legal_actions(states)
        value = np.zeros(len(states), np.float32)
        return Evaluation(np.zeros(actions.shape, np.float32), value, actions if self.listed else None)

    def legal_actions(self, states: Any) -> np.ndarray:
        """Return the actions (B, K) int64 of states, padded with -1."""
        if self.listed:
            legal: np.ndarray = self.dynamics.legal_actions(states)  # type: ignore[attr-defined]
            return legal
        assert self.num_actions is not None
        return np.broadcast_to(np.arange(self.num_actions), (len(states), self.num_actions))


class Rollouts(Uniform):
    """Random play from the states: a prior that is uniform over the legal actions, and what that play earned.

    Dynamics with a `play_out` of their own, as the emulator's and those of board games, play by it; others, such as a
    world model, by `step`. Where they have `legal_actions(states) -> (B, K)`, those alone are played.

    Args:
        dynamics: dynamics to play in.
        depth: steps after which play is cut; null plays to the end.
        discount: discount of the search.
        players: 1, or 2 who alternate.
        num_actions: A; null asks the dynamics for it.
        value: value of the states where play is cut; null is 0.
        generator: generator of the actions.

    Raises:
        UserError: for a depth that cannot be, or dynamics that do not say how many actions there are.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        depth: int | None = None,
        discount: float = 1.0,
        players: int = 1,
        num_actions: int | None = None,
        value: Evaluate | None = None,
        generator: np.random.Generator | None = None,
    ) -> None:
        if depth is not None and depth < 1:
            raise UserError(f"random play needs a depth of at least 1: got {depth}")
        if players not in (1, 2):
            raise UserError(f"players is {players}, expected 1 or 2")
        check_range("discount of random play", discount, 0, 1)
        super().__init__(dynamics, num_actions)
        self.depth = depth
        self.discount = discount
        self.players = players
        self.value = value
        self.generator = np.random.default_rng(0) if generator is None else generator

    def __call__(self, states: Any) -> Evaluation:
        """Play from states (B, ...) once each."""
        if self.value is None and hasattr(self.dynamics, "play_out"):
            returns = self.dynamics.play_out(states, self.depth, self.discount, self.generator)
        else:
            returns = self.play(states)
        return super().__call__(states)._replace(value=returns)

    def play(self, states: Any) -> np.ndarray:
        """Play from states (B, ...) by `step`, all at once, and return what that earned (B,) float32."""
        returns, weights = np.zeros(len(states)), np.ones(len(states))
        rows = np.arange(len(states))
        for step in range(ENDLESS if self.depth is None else self.depth + 1):
            legal = self.legal_actions(states)
            going = np.flatnonzero((weights[rows] != 0) & (legal[:, 0] >= 0))
            states, legal, rows = _rows(states, going), legal[going], rows[going]
            if not len(rows):
                return returns.astype(np.float32)
            if step == self.depth:
                break
            columns = (self.generator.random(len(rows)) * (legal >= 0).sum(axis=1)).astype(np.int64)
            after = self.dynamics.step(states, _beside(states, legal[np.arange(len(rows)), columns]))
            returns[rows] += weights[rows] * _array(after.reward)
            weights[rows] *= _array(after.continuation) * (self.discount if self.players == 1 else -self.discount)
            states = after.state
        if self.depth is None:
            raise UserError(f"random play did not end within {ENDLESS} steps: give it a depth")
        if self.value is not None:
            returns[rows] += weights[rows] * _array(self.value(states).value)
        return returns.astype(np.float32)


class PriorAndValue:
    """The prior of one evaluation and the value of another: AlphaGo's networks were two.

    Args:
        prior: evaluation that gives logits and actions.
        value: evaluation that gives the value.
        temperature: number that the logits are divided by; AlphaGo's was 1.5, as 1 / 0.67.
    """

    def __init__(self, prior: Evaluate, value: Evaluate, temperature: float = 1.0) -> None:
        if not temperature > 0:
            raise UserError(f"temperature of a prior must be positive: got {temperature}")
        self.prior = prior
        self.value = value
        self.temperature = temperature

    def __call__(self, states: Any) -> Evaluation:
        """Judge states (B, ...)."""
        prior = self.prior(states)
        return Evaluation(prior.logits / self.temperature, self.value(states).value, prior.actions)


class Mixed:
    """AlphaGo's leaves (Silver et al. 2016): (1 - weight) times a value, and weight times what a rollout earned.

    Args:
        evaluate: prior and value.
        rollouts: rollouts of which the value alone is taken.
        weight: lambda, from 0 to 1.
    """

    def __init__(self, evaluate: Evaluate, rollouts: Evaluate, weight: float = 0.5) -> None:
        if not 0 <= weight <= 1:
            raise UserError(f"the weight of rollouts must be from 0 to 1: got {weight}")
        self.evaluate = evaluate
        self.rollouts = rollouts
        self.weight = weight

    def __call__(self, states: Any) -> Evaluation:
        """Judge states (B, ...)."""
        judged = self.evaluate(states)
        value, played = (torch.as_tensor(part) for part in (judged.value, self.rollouts(states).value))
        mixed = (1 - self.weight) * value + self.weight * played.to(value.device, value.dtype)
        return judged._replace(value=mixed)


def _rows(states: Any, rows: np.ndarray) -> Any:
    if isinstance(states, Tensor):
        return states.index_select(0, torch.from_numpy(rows).to(states.device))
    return states[rows]


def _beside(states: Any, actions: np.ndarray) -> Tensor:
    return torch.from_numpy(actions).to(states.device if isinstance(states, Tensor) else "cpu")


def _array(values: Any) -> np.ndarray:
    return values.double().numpy(force=True) if isinstance(values, Tensor) else np.asarray(values, np.float64)
