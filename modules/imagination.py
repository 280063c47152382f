"""Unrolling any world model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modules.batch import Batch
from modules.world_model import WorldModel


@torch.no_grad()
def imagine(
    model: WorldModel, policy: nn.Module | None, states: Tensor, horizon: int, actions: Tensor | None = None
) -> Batch:
    """Dream of `horizon` steps from given states.

    Args:
        model: a world model that steps.
        policy: maps features to (logits (B, A), value (B,)); its actions are drawn by their logits.
        states: (B, *state_shape).
        horizon: H.
        actions: (B, H) int64 to follow instead of a policy's.

    Returns:
        H + 1 rows: states, the actions chosen there and what they did. The last row closes the dream: its action is 0
        and was never executed.
    """
    assert (policy is None) != (actions is None), "either a policy or actions"
    rows: dict[str, list[Tensor]] = {"state": [states], "action": [], "reward": [], "continuation": []}
    for t in range(horizon):
        if policy is not None:
            logits, _ = policy(model.features(states))
            action = torch.distributions.Categorical(logits=logits).sample()
        else:
            assert actions is not None
            action = actions[:, t]
        states, reward, continuation = model.step(states, action)
        for name, value in zip(rows, (states, action, reward, continuation), strict=True):
            rows[name].append(value)
    rows["action"].append(torch.zeros_like(rows["action"][0]))
    rows["reward"].append(torch.zeros_like(rows["reward"][0]))
    rows["continuation"].append(torch.ones_like(rows["continuation"][0]))
    state, action, reward_, continuation_ = (torch.stack(values, dim=1) for values in rows.values())
    is_last = torch.zeros_like(action, dtype=torch.bool)
    is_last[:, -1] = True
    return Batch(
        action=action,
        reward=reward_,
        continuation=continuation_,
        is_first=torch.zeros_like(is_last),
        is_last=is_last,
        state=state,
    )
