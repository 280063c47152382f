"""Published scores on Atari 100k (26 games, 100 000 agent steps), with their sources.

published.csv has the raw returns of each method, and those of random and human play, by which scores are normalised:
the scores of all seeds, separated by spaces, if a file with single runs is public, and otherwise their mean. The order
of seeds has no meaning across games. published_methods.csv has the source of each method, under one of four marks:

- C: computed from raw per-seed files that the authors of the method, or those of IRIS, released. The interquartile mean
  and the optimality gap are computed from the same files.
- V: read in a released file.
- R✓: recalled from the paper. The mean, the median and the number of superhuman games were recomputed and equal the
  published ones. This is strong evidence for games with high scores, and weak evidence for games with scores near zero.
- F: read from a figure, with an error of about 5 %.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
STEPS = 100_000
"""Agent steps after which the methods were evaluated (SimPLe 102 400, STORM 102 000, DreamerV3 up to 110 000).

Only "BBF 20k" was evaluated earlier, after 20 000.
"""
REFERENCES = ("random", "human")


@dataclass(frozen=True)
class Method:
    """Source of the scores of a method."""

    name: str
    year: str
    seeds: str
    iqm: float
    """Interquartile mean of human-normalised scores over games and seeds, for a method without seeds in published.csv.

    It is nan if single runs are not public. For EfficientZero V2 it is that of the means of games.
    """
    optimality_gap: float
    mark: str
    source: str
    note: str
    """Reason why the scores may not be comparable."""


def _read(name: str) -> list[dict[str, str]]:
    with (FOLDER / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


_SCORES = {(row["game"], row["method"]): np.array(row["scores"].split(), float) for row in _read("published.csv")}

GAMES = tuple(dict.fromkeys(game for game, _ in _SCORES))
"""ALE's ids of the 26 games, in alphabetical order."""

METHODS = {
    row["method"]: Method(
        name=row["method"],
        iqm=float(row["iqm"] or "nan"),
        optimality_gap=float(row["optimality_gap"] or "nan"),
        **{key: row[key] for key in ("year", "seeds", "mark", "source", "note")},
    )
    for row in _read("published_methods.csv")
}
"""Methods by name; random and human play come first."""


def score(game: str, method: str) -> float:
    """Return the published mean return of a method, "random" or "human" in one of GAMES; nan if there is none."""
    return float(runs(game, method).mean())


def runs(game: str, method: str) -> np.ndarray:
    """Return the published returns of a method, (seeds,); (1,) if there is only a mean, which is nan if unknown."""
    return _SCORES.get((game, method), np.array([np.nan]))


def normalize(game: str, returns: np.ndarray | float) -> np.ndarray:
    """Return human-normalised scores (...) of raw returns in one of GAMES: (returns − random) / (human − random)."""
    random, human = score(game, "random"), score(game, "human")
    return (np.asarray(returns) - random) / (human - random)


def human_normalized(method: str, games: Sequence[str] = GAMES) -> list[np.ndarray]:
    """Return a method's human-normalised scores (seeds,) in each of some of GAMES."""
    return [normalize(game, runs(game, method)) for game in games]
