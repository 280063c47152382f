"""Means of episodes with their intervals, and permutation tests of their differences."""

from __future__ import annotations

from typing import Any

import numpy as np


def interval(returns: list[float]) -> dict[str, Any]:
    """Return the mean of episodes with its bootstrapped 95 % interval."""
    draws = np.random.default_rng(0).choice(returns, (10_000, len(returns))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"mean": round(float(np.mean(returns)), 2), "low": round(float(low), 2), "high": round(float(high), 2)}


def p_not_above(returns: list[float], others: list[float], draws: int = 20_000) -> float:
    """Return the one-sided p-value that returns are no better than others, by permutation of their means."""
    pooled = np.array([*returns, *others])
    shuffled = np.random.default_rng(0).permuted(np.tile(pooled, (draws, 1)), axis=1)
    differences = shuffled[:, : len(returns)].mean(axis=1) - shuffled[:, len(returns) :].mean(axis=1)
    return float((1 + (differences >= np.mean(returns) - np.mean(others)).sum()) / (1 + draws))
