"""Unrolling any world model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.batch import Batch


class Dynamics(Protocol):
    """What imagination needs of a world model."""

    def step(self, state: Tensor, action: Tensor) -> Any:
        """Map states (B, *state_shape) and actions, (B,) int64 or (B, A) float, to a `Step`."""
        ...

    def features(self, state: Tensor) -> Tensor:
        """Map states to what a policy sees, (B, *feature_shape)."""
        ...


@contextmanager
def evaluating(*modules: Any) -> Iterator[None]:
    """Switch modules to evaluation mode, and back to the mode that each was in; None is left out."""
    training = [module for module in modules if module is not None and module.training]
    for module in training:
        module.eval()
    try:
        yield
    finally:
        for module in training:
            module.train()


@contextmanager
def frozen(module: Any) -> Iterator[None]:
    """Let gradients pass through a module without reaching its parameters."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def imagine(
    model: Dynamics,
    policy: nn.Module | None,
    states: Tensor,
    horizon: int,
    actions: Tensor | None = None,
    gradient: bool = False,
) -> Batch:
    """Dream of `horizon` steps from given states, in evaluation mode.

    Args:
        model: a world model that steps.
        policy: maps features to (logits (B, A), value (B,)); its actions are drawn by their logits.
        states: (B, *state_shape).
        horizon: H.
        actions: (B, H) int64, or (B, H, A) float weights, to follow instead of a policy's actions.
        gradient: let gradients flow from the dream to the states and to the policy, through the model, whose own
            parameters get none. Drawn actions pass them on straight through: forward a one-hot action, backward its
            probabilities (Bengio et al. 2013).

    Returns:
        H + 1 rows: states, the actions chosen there and what they did. The last row closes the dream: its action is 0
        and was never executed. A policy's extras are `log_prob` and `value`, that of the last row included; with
        gradient also `logits` (B, H + 1, A).
    """
    assert (policy is None) != (actions is None), "either a policy or actions"
    with evaluating(model, policy), frozen(model) if gradient else nullcontext(), torch.set_grad_enabled(gradient):
        return _unroll(model, policy, states, horizon, actions, gradient)


def _unroll(
    model: Dynamics, policy: nn.Module | None, states: Tensor, horizon: int, actions: Tensor | None, gradient: bool
) -> Batch:
    columns: dict[str, list[Tensor]] = {"state": [states], "action": [], "reward": [], "continuation": []}
    extras: dict[str, list[Tensor]] = {"log_prob": [], "value": [], "logits": []}
    for t in range(horizon):
        if policy is not None:
            logits, value = policy(model.features(states))
            log_probs = logits.log_softmax(dim=1)
            action = torch.multinomial(log_probs.detach().exp(), 1)[:, 0]
            taken = straight_through(action, log_probs.exp()) if gradient else action
            extras["log_prob"].append(log_probs.gather(1, action[:, None])[:, 0])
            extras["value"].append(value)
            if gradient:
                extras["logits"].append(logits)
        else:
            assert actions is not None
            taken = actions[:, t]
            action = taken.argmax(dim=1) if taken.is_floating_point() else taken
        states, reward, continuation = model.step(states, taken)
        for name, column in zip(columns, (states, action, reward, continuation), strict=True):
            columns[name].append(column)
    if policy is not None:
        logits, value = policy(model.features(states))
        extras["log_prob"].append(torch.zeros_like(value))
        extras["value"].append(value)
        if gradient:
            extras["logits"].append(logits)
    columns["action"].append(torch.zeros_like(columns["action"][0]))
    columns["reward"].append(torch.zeros_like(columns["reward"][0]))
    columns["continuation"].append(torch.ones_like(columns["continuation"][0]))
    state, action, reward_, continuation_ = (torch.stack(rows, dim=1) for rows in columns.values())
    is_last = torch.zeros_like(action, dtype=torch.bool)
    is_last[:, -1] = True
    return Batch(
        action=action,
        reward=reward_,
        continuation=continuation_,
        is_first=torch.zeros_like(is_last),
        is_last=is_last,
        state=state,
        extras={name: torch.stack(rows, dim=1) for name, rows in extras.items() if rows},
    )


def straight_through(action: Tensor, probabilities: Tensor) -> Tensor:
    """Return one-hot actions (B, A) of (B,) int64, whose gradient is that of their probabilities (B, A)."""
    one_hot = F.one_hot(action, probabilities.shape[1]).to(probabilities.dtype)
    return one_hot + probabilities - probabilities.detach()
