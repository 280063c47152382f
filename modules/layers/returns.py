"""Returns over windows of real or dreamed rows.

All functions take rewards and continuations (B, T), `has_successor` (B, T - 1) and values (B, T) of
`modules.batch.Batch`, and give (B, T - 1): the return of row t is its reward plus, while the episode goes on, the
discounted return of row t + 1. A row without a successor bootstraps from its value: at the end of an episode, of a
window or of a run that was cut.
"""

from __future__ import annotations

import torch
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
