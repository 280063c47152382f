"""Targets of MuZero's unrolled steps, made from windows of real rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from modules.batch import Batch
from modules.errors import check_range
from modules.layers.returns import n_step_returns


@dataclass(frozen=True)
class TargetRule:
    """Rule by which windows of real rows become targets.

    Args:
        unroll: number K of steps that the training loss unrolls the model on its own states.
        n_step: number of rewards that a value target sums before it bootstraps.
        discount: discount factor of returns, in targets and in searches.
        bootstrap: value at the end of a value target: "root_value", which a search found when the row was played, or
            that of the "target" network.
        off_policy_correction: age of a row, in real steps, for every multiple of which its value target sums one reward
            less: 30,000 in EfficientZero; 0 does not correct. It needs data.sampling.prioritised.
        clip_rewards: clip the rewards of all targets to [-1, 1].
    """

    unroll: int = 5
    n_step: int = 5
    discount: float = 0.997
    bootstrap: Literal["root_value", "target"] = "target"
    off_policy_correction: int = 0
    clip_rewards: bool = False

    def __post_init__(self) -> None:
        check_range("model.targets.unroll", self.unroll, 1)
        check_range("model.targets.n_step", self.n_step, 1)
        check_range("model.targets.discount", self.discount, 0, 1)
        check_range("model.targets.off_policy_correction", self.off_policy_correction, 0)


class Targets(NamedTuple):
    """Targets of the unrolled states 0 to K, and of the K actions between them. Masks are bool, True where known."""

    value: Tensor
    """(B, K + 1): n-step returns; 0 from the end of an episode on."""
    reward: Tensor
    """(B, K): rewards, or their sums with a value prefix; rewards are 0 from the end of an episode on."""
    value_known: Tensor
    """(B, K + 1): mask of `value`."""
    reward_known: Tensor
    """(B, K): mask of `reward`."""
    alive: Tensor
    """(B, K + 1): the state was observed and is not terminal, so it has targets for policy and consistency."""


def make_targets(
    batch: Batch,
    reward: Tensor,
    values: Tensor,
    unroll: int,
    n_step: int | Tensor,
    discount: float,
    value_prefix: int = 0,
) -> Targets:
    """Make the targets of a window's first row, unrolled (Schrittwieser et al. 2020, appendix G).

    From the end of an episode on, states are absorbing: value and rewards are 0 for all actions, and there is no policy
    target. Where an episode was truncated or a run was cut, the return bootstraps from the last row's value, and later
    targets are unknown. A window whose first row is the last of an episode has no known targets.

    Args:
        batch: real rows (B, T).
        reward: rewards (B, T) to learn.
        values: values (B, T) to bootstrap from.
        unroll: number K of unrolled actions.
        n_step: number of rewards that a return sums before it bootstraps, fewer at the end of a window or an episode;
            a tensor (B,) gives one number per window.
        discount: discount factor of the returns.
        value_prefix: number of actions after which a sum of rewards restarts; 0 learns single rewards.
    """
    has_successor, opened = batch.has_successor(), ~batch.is_last[:, :1]
    # Row k follows the first row through real rows of one episode and one run.
    reached = torch.cat([opened, opened & has_successor[:, :unroll].cumprod(dim=1).bool()], dim=1)
    ends = reached[:, :-1] & (batch.continuation[:, :unroll] == 0)
    ended = torch.cat([torch.zeros_like(opened), ends.cumsum(dim=1) > 0], dim=1)
    known = reached | ended
    returns = _returns(batch.replace(reward=reward), values, discount, n_step)
    value = returns[:, : unroll + 1].masked_fill(ended, 0)
    earned = reward[:, :unroll].masked_fill(ended[:, :-1], 0)
    if value_prefix:
        blocks = earned.split(value_prefix, dim=1)
        earned = torch.cat([block.cumsum(dim=1) for block in blocks], dim=1)
    return Targets(value, earned, known, known[:, 1:], reached & ~ended)


def _returns(batch: Batch, values: Tensor, discount: float, n_step: int | Tensor) -> Tensor:
    rows = batch.reward, batch.continuation, batch.has_successor(), values, discount
    if isinstance(n_step, int):
        return n_step_returns(*rows, n_step)
    returns = torch.stack([n_step_returns(*rows, n) for n in range(1, int(n_step.max()) + 1)])
    return returns[n_step - 1, torch.arange(len(n_step), device=n_step.device)]
