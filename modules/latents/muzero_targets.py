"""What MuZero learns from: windows of real rows, as targets of its unrolled steps."""

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
    """How windows of real rows become targets.

    Args:
        unroll: number K of steps that the model is trained on its own states.
        n_step: rewards that a value target sums before it bootstraps.
        discount: discount of returns, a search's as well.
        bootstrap: end of a value target: the search's "root_value", or the value of the "target" network.
        off_policy_correction: real steps of age for which a value target sums one reward less, 30,000 in EfficientZero;
            0 does not correct. It needs data.sampling.prioritised.
        clip_rewards: learn from rewards clipped to [-1, 1].
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
    """Of states 0 .. K, which unrolling leads to, and of the K actions between them. Masks are bool: what is known."""

    value: Tensor
    """(B, K + 1): n-step returns, 0 from an end on."""
    reward: Tensor
    """(B, K): 0 from an end on, or their sums where a value prefix is learned."""
    value_known: Tensor
    """(B, K + 1)."""
    reward_known: Tensor
    """(B, K)."""
    alive: Tensor
    """(B, K + 1): the state was seen and is no end; it has a policy, and an observation to agree with."""


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

    From the end of an episode on, states are absorbing: value and rewards are 0, whatever the actions, and there is no
    policy. Where an episode was truncated, or a run was cut, the last row's value stands in for the rest, and nothing
    is known of what comes. A window that opens with the row that closes an episode teaches nothing.

    Args:
        batch: (B, T) real rows.
        reward: (B, T) to learn.
        values: (B, T) to bootstrap from.
        unroll: K.
        n_step: rewards that a return sums before it bootstraps, fewer where the window or an episode ends; (B,) gives
            each window its own.
        discount: discount of returns.
        value_prefix: actions over which rewards are summed before a sum starts anew; 0 sums nothing.
    """
    has_successor, opened = batch.has_successor(), ~batch.is_last[:, :1]
    # Row k was reached through real rows, without a cut.
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
