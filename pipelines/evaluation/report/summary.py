"""Statistics of a report: scores per game, aggregates, learning curves, and notes on their limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from modules.errors import UserError, nearest
from pipelines.evaluation.report import published
from pipelines.evaluation.report.runs import Run
from pipelines.evaluation.statistics import (
    STATISTICS,
    Estimate,
    estimate,
    interquartile_mean,
    mean,
    probability_of_improvement,
)

CURVE_RESAMPLES = 1_000
CURVE_POINTS = 60
"""Largest number of points in the learning curve over all games."""


class Curve(NamedTuple):
    """Learning curve: the interquartile mean over runs, or over runs and games, against real steps."""

    steps: np.ndarray
    """Real steps (points,) at which any run was evaluated, in the range that all runs share. Runs without an evaluation
    at such a step are interpolated."""
    estimate: Estimate
    """Interquartile mean and its interval, (points,) each."""
    runs: list[Run]


@dataclass(frozen=True)
class Summary:
    """Runs of one environment and protocol, and their statistics. Each statistic is computed at its first use.

    Args:
        runs: runs that `load` returned.
        baseline: name of the experiment that the others are compared with; None compares nothing.
        seed: seed of all bootstraps.

    Raises:
        UserError: no run belongs to the baseline, or all runs do.
    """

    runs: list[Run]
    baseline: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.baseline is None:
            return
        if self.baseline not in self.experiments:
            raise UserError(
                f"--baseline {self.baseline}: no run is of this experiment, the nearest is "
                f"{nearest(self.baseline, self.experiments)}"
            )
        if len(self.experiments) == 1:
            raise UserError(f"--baseline {self.baseline}: all runs are of this experiment, none is left to compare")

    @property
    def environment(self) -> str:
        """Kind of environment: atari, control, ..."""
        return self.runs[0].last.environment

    @cached_property
    def experiments(self) -> list[str]:
        """Sorted names of the experiments."""
        return sorted({run.last.experiment for run in self.runs})

    @cached_property
    def games(self) -> list[str]:
        """Sorted ids of the games."""
        return sorted({run.last.game for run in self.runs})

    @cached_property
    def groups(self) -> dict[tuple[str, str], list[Run]]:
        """Runs of every experiment and game, sorted by seed."""
        groups: dict[tuple[str, str], list[Run]] = {}
        for run in self.runs:
            groups.setdefault((run.last.experiment, run.last.game), []).append(run)
        return groups

    @cached_property
    def shared_games(self) -> tuple[str, ...]:
        """Games that every experiment has played. Statistics over games use these alone."""
        return tuple(game for game in self.games if all((name, game) in self.groups for name in self.experiments))

    @cached_property
    def normalized_games(self) -> tuple[str, ...]:
        """Shared games that have a human score; empty for environments other than Atari."""
        if self.environment != "atari":
            return ()
        return tuple(game for game in self.shared_games if game in published.GAMES)

    @property
    def is_comparable(self) -> bool:
        """Whether these runs have the protocol of the published scores."""
        return self.environment == "atari" and self.runs[0].last.protocol.get("name") == "atari100k"

    @cached_property
    def returns(self) -> dict[tuple[str, str], dict[str, Estimate]]:
        """Mean and interquartile mean of the raw returns of every experiment and game."""
        statistics = {"mean": mean, "interquartile mean": interquartile_mean}
        return {group: estimate([_last_scores(runs)], statistics, self.seed) for group, runs in self.groups.items()}

    @cached_property
    def aggregates(self) -> dict[str, dict[str, Estimate]]:
        """Statistics of human-normalised scores over `normalized_games`, by experiment; empty without such games."""
        if not self.normalized_games:
            return {}
        return {
            name: estimate(
                [published.normalize(game, _last_scores(self.groups[name, game])) for game in self.normalized_games],
                STATISTICS,
                self.seed,
            )
            for name in self.experiments
        }

    @cached_property
    def improvements(self) -> dict[str, Estimate]:
        """Probability that a run of an experiment beats a run of the baseline, over `shared_games`, by experiment."""
        if self.baseline is None or not self.shared_games:
            return {}
        scores = {name: [_last_scores(self.groups[name, g]) for g in self.shared_games] for name in self.experiments}
        return {
            name: probability_of_improvement(scores[name], scores[self.baseline], self.seed)
            for name in self.experiments
            if name != self.baseline
        }

    @cached_property
    def curves(self) -> dict[tuple[str, str], Curve]:
        """Learning curves of raw returns, by experiment and game."""
        return {group: self._curve([runs], [lambda scores: scores]) for group, runs in self.groups.items()}

    @cached_property
    def overall_curves(self) -> dict[str, Curve]:
        """Learning curves of human-normalised scores over `normalized_games`; empty for fewer than two games."""
        games = self.normalized_games
        if len(games) < 2:
            return {}
        scales = [lambda scores, game=game: published.normalize(game, scores) for game in games]
        return {name: self._curve([self.groups[name, game] for game in games], scales) for name in self.experiments}

    @cached_property
    def notes(self) -> list[str]:
        """Limits of the conclusions, one note each."""
        notes = []
        counts = sorted({len(runs) for runs in self.groups.values()})
        if counts[0] == 1:
            notes.append("Scores of one seed have no interval: they say nothing about other seeds.")
        if counts[-1] > 1 and counts[0] < 5:
            few = next(count for count in counts if count > 1)
            if few < 5:
                notes.append(f"Bootstrap intervals of {few} seeds are too narrow: the true intervals are wider.")
        ends = sorted({run.last.env_steps for run in self.runs})
        if len(ends) > 1:
            notes.append(f"The runs end at different numbers of real steps, from {ends[0]:,} to {ends[-1]:,}.")
        if self.is_comparable and self._is_far(ends):
            notes.append(
                f"Published scores are those after {published.STEPS:,} real steps, but these runs end elsewhere."
            )
        if self.environment == "atari" and not self.is_comparable:
            name = self.runs[0].last.protocol.get("name")
            notes.append(f"Published Atari 100k scores are left out, because these runs use another protocol, {name}.")
        left_out = [game for game in self.games if game not in self.shared_games]
        if left_out:
            notes.append(
                f"Statistics over games leave out {', '.join(left_out)}, because not every experiment has played them."
            )
        nameless = [game for game in self.shared_games if game not in published.GAMES]
        if self.environment == "atari" and nameless:
            notes.append(
                f"Normalised scores leave out {', '.join(nameless)}, because no human score of them is known here."
            )
        open_ended = sum(not run.last.final for run in self.runs)
        if open_ended:
            notes.append(
                f"{open_ended} of {len(self.runs)} runs have no final evaluation: their newest evaluation counts."
            )
        episodes = [episode for run in self.runs for episode in run.last.episodes]
        cut = sum(not episode["finished"] for episode in episodes)
        if cut:
            notes.append(
                f"{cut:,} of {len(episodes):,} episodes were cut at the evaluation's limit of steps; their return up "
                "to there counts."
            )
        return notes

    def _is_far(self, ends: Sequence[int]) -> bool:
        return not all(0.9 * published.STEPS <= end <= 1.1 * published.STEPS for end in ends)

    def _curve(self, groups: list[list[Run]], scales: Sequence) -> Curve:
        runs = [run for group in groups for run in group]
        first, last = max(run.steps[0] for run in runs), min(run.steps[-1] for run in runs)
        steps = np.unique(np.concatenate([run.steps for run in runs]))
        steps = steps[(first <= steps) & (steps <= last)]
        if len(groups) > 1 and len(steps) > CURVE_POINTS:
            steps = steps[np.linspace(0, len(steps) - 1, CURVE_POINTS).round().astype(int)]
        scores = [
            np.stack([scale(np.interp(steps, run.steps, run.scores)) for run in group], -1)  # (points, runs)
            for group, scale in zip(groups, scales, strict=True)
        ]
        statistics = {"interquartile mean": interquartile_mean}
        return Curve(steps, estimate(scores, statistics, self.seed, CURVE_RESAMPLES)["interquartile mean"], runs)


def _last_scores(runs: Sequence[Run]) -> np.ndarray:
    return np.array([run.last.score for run in runs])
