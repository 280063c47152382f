"""Leaf evaluation, prior logits and value for a batch of states: networks, random play, or a mix of both."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from modules.errors import UserError, check_range
from modules.policies.policy import Policy
from pipelines.search.contract import Dynamics, Evaluate, Evaluation

ENDLESS = 100_000
"""Number of steps after which random play to the end of an episode is an error."""


class Features(Protocol):
    """The part of a world model that a policy needs."""

    def features(self, state: Tensor) -> Tensor:
        """Map states (B, *state_shape) to features (B, *feature_shape)."""
        ...


class NetworkEvaluator:
    """Evaluates states by a policy on the features of a model's states.

    Args:
        model: a world model, or MuZero's networks.
        policy: policy that gives prior logits and value.
    """

    def __init__(self, model: Features, policy: Policy) -> None:
        self.model = model
        self.policy = policy

    def __call__(self, states: Tensor) -> Evaluation:
        """Evaluate states (B, *state_shape)."""
        logits, value = self.policy(self.model.features(states))
        return Evaluation(logits.float(), value.float())


class Uniform:
    """Evaluates without knowledge: equal logits for all legal actions, and the value 0.

    Args:
        dynamics: dynamics whose actions are evaluated; only the legal ones if it has `legal_actions(states) -> (B, K)`.
        num_actions: number A of actions; null takes the number of the dynamics.

    Raises:
        UserError: the dynamics do not state the number of actions, and num_actions is null.
    """

    def __init__(self, dynamics: Dynamics, num_actions: int | None = None) -> None:
        self.listed = hasattr(dynamics, "legal_actions")
        self.num_actions: int | None = getattr(dynamics, "num_actions", None) if num_actions is None else num_actions
        if self.num_actions is None and not self.listed:
            raise UserError(f"{type(dynamics).__name__} does not say how many actions there are: give num_actions")
        self.dynamics = dynamics

    def __call__(self, states: Any) -> Evaluation:
        """Evaluate states (B, ...)."""
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
    """Evaluates by random play: a uniform prior over the legal actions, and the return of one random episode.

    Dynamics with a method `play_out`, such as the emulator's and those of board games, play by it. Other dynamics, such
    as a world model, play by `step`. Dynamics with `legal_actions(states) -> (B, K)` play only legal actions.

    Args:
        dynamics: dynamics to play in.
        depth: number of steps after which play is cut; null plays to the end.
        discount: discount of the search.
        players: number of players, 1 or 2; two players alternate.
        num_actions: number A of actions; null takes the number of the dynamics.
        value: evaluator of the states where play is cut; null evaluates them as 0.
        generator: generator of the actions.

    Raises:
        UserError: the depth, the players or the discount are out of range, or the number of actions is unknown.
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
        """Evaluate states (B, ...) by one random episode each."""
        if self.value is None and hasattr(self.dynamics, "play_out"):
            returns = self.dynamics.play_out(states, self.depth, self.discount, self.generator)
        else:
            returns = self.play(states)
        return super().__call__(states)._replace(value=returns)

    def play(self, states: Any) -> np.ndarray:
        """Play from all states (B, ...) at once by `step`, and return the returns (B,) float32."""
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
    """Combines the prior of one evaluator with the value of another, as AlphaGo did with its two networks.

    Args:
        prior: evaluator that gives logits and actions.
        value: evaluator that gives the value.
        temperature: divisor of the logits; AlphaGo used 1.5, which is 1 / 0.67.
    """

    def __init__(self, prior: Evaluate, value: Evaluate, temperature: float = 1.0) -> None:
        if not temperature > 0:
            raise UserError(f"temperature of a prior must be positive: got {temperature}")
        self.prior = prior
        self.value = value
        self.temperature = temperature

    def __call__(self, states: Any) -> Evaluation:
        """Evaluate states (B, ...)."""
        prior = self.prior(states)
        return Evaluation(prior.logits / self.temperature, self.value(states).value, prior.actions)


class Mixed:
    """AlphaGo's leaf value (Silver et al. 2016): (1 - weight) * value + weight * return of a rollout.

    Args:
        evaluate: evaluator that gives prior logits and value.
        rollouts: evaluator by random play, from which only the value is taken.
        weight: weight lambda of the rollouts, from 0 to 1.
    """

    def __init__(self, evaluate: Evaluate, rollouts: Evaluate, weight: float = 0.5) -> None:
        if not 0 <= weight <= 1:
            raise UserError(f"the weight of rollouts must be from 0 to 1: got {weight}")
        self.evaluate = evaluate
        self.rollouts = rollouts
        self.weight = weight

    def __call__(self, states: Any) -> Evaluation:
        """Evaluate states (B, ...)."""
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
