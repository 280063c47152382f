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
    """The methods of a world model that `imagine` needs."""

    def step(self, state: Tensor, action: Tensor) -> Any:
        """Map states (B, *state_shape) and actions, (B,) int64 or (B, A) float, to a `Step`."""
        ...

    def features(self, state: Tensor) -> Tensor:
        """Map states to the input of a policy, (B, *feature_shape)."""
        ...


@contextmanager
def evaluating(*modules: Any) -> Iterator[None]:
    """Switch modules to evaluation mode and restore their modes afterwards; skip None."""
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
    """Dream `horizon` steps from given states, in evaluation mode.

    Args:
        model: world model with the capability "step".
        policy: policy that maps features to (logits (B, A), value (B,)); actions are sampled from its logits.
        states: states (B, *state_shape) at the start of the dreams.
        horizon: number H of steps.
        actions: actions (B, H) int64, or float weights (B, H, A), that replace a policy's actions.
        gradient: let gradients flow from the dream through the model to the states and the policy. The parameters of
            the model get no gradient. Sampled actions are straight-through: one-hot in the forward pass, their
            probabilities in the backward pass (Bengio et al. 2013).

    Returns:
        H + 1 rows of states, actions, rewards and continuations. The last row holds the final state; its action is 0
        and was never executed. With a policy the extras are `log_prob` and `value`, also for the last row; with
        gradient the extras include `logits` (B, H + 1, A).
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
    """Return one-hot actions (B, A) of (B,) int64 with the gradient of their probabilities (B, A)."""
    one_hot = F.one_hot(action, probabilities.shape[1]).to(probabilities.dtype)
    return one_hot + probabilities - probabilities.detach()
