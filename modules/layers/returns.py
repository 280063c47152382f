"""Returns over windows of real or dreamed rows.

All functions take rewards and continuations (B, T), `has_successor` (B, T - 1) and values (B, T) of
`modules.batch.Batch`, and give (B, T - 1): the return of row t is its reward plus, while the episode goes on, the
discounted return of row t + 1. A row without a successor bootstraps from its value: at the end of an episode, of a
window or of a run that was cut.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def n_step_returns(
    reward: Tensor, continuation: Tensor, has_successor: Tensor, values: Tensor, discount: float, n: int
) -> Tensor:
    """Return the n-step returns (Sutton and Barto 2018, equation 7.1), shorter where a window or an episode ends."""
    returns = values
    for _ in range(n):
        after = reward[:, :-1] + discount * continuation[:, :-1] * returns[:, 1:]
        returns = torch.cat([torch.where(has_successor, after, values[:, :-1]), values[:, -1:]], dim=1)
    return returns[:, :-1]


def n_step_parts(
    reward: Tensor, continuation: Tensor, has_successor: Tensor, discount: float, n: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what n-step returns are made of: the return of a row is sum + factor * value of the bootstrapped row.

    Returns:
        The discounted sum of rewards, the factor of the bootstrapped value, and the row (int64) that bootstraps,
        (B, T - 1) each. A row without a successor bootstraps from itself.
    """
    length = has_successor.shape[1]
    taken = F.pad(has_successor, (0, n - 1)).unfold(1, n, 1).cumprod(dim=2)  # step k of row t stays in its episode
    lives = F.pad(continuation[:, :-1], (0, n - 1)).unfold(1, n, 1) * discount
    earned = F.pad(reward[:, :-1], (0, n - 1)).unfold(1, n, 1)
    factors = torch.where(taken > 0, lives, 1.0).cumprod(dim=2)
    before = F.pad(factors[..., :-1], (1, 0), value=1.0)
    rows = torch.arange(length, device=reward.device) + taken.sum(dim=2)
    return (taken * before * earned).sum(dim=2), factors[..., -1], rows


def lambda_returns(
    reward: Tensor, continuation: Tensor, has_successor: Tensor, values: Tensor, discount: float, lambda_: float
) -> Tensor:
    """Return the lambda-returns (Sutton and Barto 2018, equation 12.2).

    Minus `values[:, :-1]` they are the generalised advantage estimates (Schulman et al. 2016, equation 16).
    """
    after, returns = values[:, -1], []
    for t in range(values.shape[1] - 2, -1, -1):
        mixed = (1 - lambda_) * values[:, t + 1] + lambda_ * after
        after = torch.where(has_successor[:, t], reward[:, t] + discount * continuation[:, t] * mixed, values[:, t])
        returns.append(after)
    return torch.stack(returns[::-1], dim=1)


def reach_weights(continuation: Tensor, has_successor: Tensor) -> Tensor:
    """Return the weight of each row: the probability that its window reaches it, 0 for rows without a successor.

    Real rows weigh 1 or 0. A dream continues past a likely end, so its later rows weigh less (Hafner et al. 2021,
    appendix on discount weights).
    """
    weight, weights = torch.ones_like(continuation[:, 0]), []
    for t in range(has_successor.shape[1]):
        weights.append(weight)
        weight = torch.where(has_successor[:, t], weight * continuation[:, t], 1.0)
    return torch.stack(weights, dim=1) * has_successor


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean of values."""
    return (values * weights).sum() / weights.sum().clamp(min=1e-6)
