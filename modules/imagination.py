"""Unrolling any world model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from modules.batch import Batch
from modules.world_model import WorldModel


@contextmanager
def evaluating(*modules: nn.Module | None) -> Iterator[None]:
    """Switch modules to evaluation mode, and back to the mode that each was in."""
    training = [module for module in modules if module is not None and module.training]
    for module in training:
        module.eval()
    try:
        yield
    finally:
        for module in training:
            module.train()


@torch.no_grad()
def imagine(
    model: WorldModel, policy: nn.Module | None, states: Tensor, horizon: int, actions: Tensor | None = None
) -> Batch:
    """Dream of `horizon` steps from given states, in evaluation mode.

    Args:
        model: a world model that steps.
        policy: maps features to (logits (B, A), value (B,)); its actions are drawn by their logits.
        states: (B, *state_shape).
        horizon: H.
        actions: (B, H) int64 to follow instead of a policy's.

    Returns:
        H + 1 rows: states, the actions chosen there and what they did. The last row closes the dream: its action is 0
        and was never executed. A policy's extras are `log_prob` and `value`, that of the last row included.
    """
    assert (policy is None) != (actions is None), "either a policy or actions"
    columns: dict[str, list[Tensor]] = {"state": [states], "action": [], "reward": [], "continuation": []}
    chosen: dict[str, list[Tensor]] = {"log_prob": [], "value": []}
    with evaluating(model, policy):
        for t in range(horizon):
            if policy is not None:
                logits, value = policy(model.features(states))
                log_probs = logits.log_softmax(dim=1)
                action = torch.multinomial(log_probs.exp(), 1)[:, 0]
                chosen["log_prob"].append(log_probs.gather(1, action[:, None])[:, 0])
                chosen["value"].append(value)
            else:
                assert actions is not None
                action = actions[:, t]
            states, reward, continuation = model.step(states, action)
            for name, column in zip(columns, (states, action, reward, continuation), strict=True):
                columns[name].append(column)
        if policy is not None:
            _, value = policy(model.features(states))
            chosen["log_prob"].append(torch.zeros_like(value))
            chosen["value"].append(value)
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
        extras={name: torch.stack(rows, dim=1) for name, rows in chosen.items() if rows},
    )
