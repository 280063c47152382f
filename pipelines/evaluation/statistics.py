"""Statistics over few runs of many games, with intervals: Agarwal et al. 2021, "Deep RL at the Edge of the Statistical
Precipice".

Scores are a sequence over games of arrays (..., runs): the number of runs may differ between games. Every statistic
reduces the runs and the games and keeps the leading dimensions, so a bootstrap is one call on resampled scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Scores = Sequence[np.ndarray]
Statistic = Callable[[Scores], np.ndarray]

CONFIDENCE = 0.95
RESAMPLES = 20_000


class Estimate(NamedTuple):
    """A statistic with the bounds of its 95% interval, (...) each; the bounds are nan where a game has one run."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def mean(scores: Scores) -> np.ndarray:
    """Return the mean over games of the mean over runs, (...)."""
    return _game_means(scores).mean(-1)


def median(scores: Scores) -> np.ndarray:
    """Return the median over games of the mean over runs, (...)."""
    return np.median(_game_means(scores), -1)


def interquartile_mean(scores: Scores) -> np.ndarray:
    """Return the mean of the middle half of all runs of all games, (...).

    Of n runs the lowest and the highest floor(n / 4) are left out, whole runs as in `scipy.stats.trim_mean(x, 0.25)`:
    of 130 runs 66 stay, of 5 runs 3, of 3 runs all.
    """
    runs = np.sort(np.concatenate(scores, -1), -1)
    cut = runs.shape[-1] // 4
    return runs[..., cut : runs.shape[-1] - cut].mean(-1)


def optimality_gap(scores: Scores, threshold: float = 1.0) -> np.ndarray:
    """Return how far scores fall short of a threshold on average, (...); what exceeds it counts as reaching it."""
    return threshold - mean([np.minimum(runs, threshold) for runs in scores])


STATISTICS: dict[str, Statistic] = {
    "mean": mean,
    "median": median,
    "interquartile mean": interquartile_mean,
    "optimality gap": optimality_gap,
}


def estimate(
    scores: Scores, statistics: Mapping[str, Statistic], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Estimate]:
    """Return statistics of scores (..., runs) per game, with percentile intervals of a stratified bootstrap.

    Whole runs are drawn with replacement within each game; leading dimensions (the steps of a curve) and all statistics
    see the same draws. With few runs of few games such an interval is too narrow: that of the mean of 3 runs of one
    game covers the truth about 74% of the time, of 5 runs 87%, of 10 runs 93% (normal scores).
    """
    assert min((runs.shape[-1] for runs in scores), default=0) > 0
    values = {name: np.asarray(statistic(scores)) for name, statistic in statistics.items()}
    if min(runs.shape[-1] for runs in scores) == 1:
        return {name: Estimate(value, *_unknown(value)) for name, value in values.items()}
    generator = np.random.default_rng(seed)
    counts = [runs.shape[-1] for runs in scores]
    draws = [generator.integers(count, size=(resamples, count)) for count in counts]
    drawn = [runs[..., draw] for runs, draw in zip(scores, draws, strict=True)]  # (..., resamples, runs)
    return {name: Estimate(values[name], *_interval(statistic(drawn))) for name, statistic in statistics.items()}


def probability_of_improvement(x: Scores, y: Scores, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Return the chance that a run of x beats a run of y in a game drawn at random; a tie counts half.

    Args:
        x: scores (runs,) per game.
        y: scores of another algorithm, for the same games in the same order.
        seed: seed of the bootstrap, which draws runs of both within each game.
        resamples: number of draws of the bootstrap.
    """
    assert len(x) == len(y) > 0
    generator = np.random.default_rng(seed)
    value, drawn = np.zeros(()), np.zeros(resamples)
    for ours, theirs in zip(x, y, strict=True):
        wins = (ours[:, None] > theirs) + 0.5 * (ours[:, None] == theirs)  # Mann-Whitney's U, (runs of x, runs of y)
        value = value + wins.mean() / len(x)
        # How often each run is drawn says all that a resample is.
        won = _weights(generator, ours.size, resamples) @ wins
        drawn += (won * _weights(generator, theirs.size, resamples)).sum(-1) / len(x)
    single = min(runs.size for runs in (*x, *y)) == 1
    return Estimate(value, *(_unknown(value) if single else _interval(drawn)))


def _game_means(scores: Scores) -> np.ndarray:
    return np.stack([runs.mean(-1) for runs in scores], -1)  # (..., games)


def _interval(drawn: np.ndarray) -> np.ndarray:
    return np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=-1)


def _unknown(value: np.ndarray) -> np.ndarray:
    return np.full((2, *value.shape), np.nan)


def _weights(generator: np.random.Generator, runs: int, resamples: int) -> np.ndarray:
    return generator.multinomial(runs, np.full(runs, 1 / runs), size=resamples) / runs
