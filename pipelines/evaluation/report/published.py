"""Published scores on Atari 100k (26 games, 100 000 agent steps), with their sources.

published.csv has the raw returns of each method, as means over seeds, and those of random and human play, by which
scores are normalised. published_methods.csv has the source of each method, under one of three marks:

- C: computed from raw per-seed files that the authors of the method, or those of IRIS, released. The interquartile mean
  and the optimality gap are computed from the same files.
- V: read in a released file.
- R✓: recalled from the paper. The mean, the median and the number of superhuman games were recomputed and equal the
  published ones. This is strong evidence for games with high scores, and weak evidence for games with scores near zero.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
STEPS = 100_000
"""Agent steps after which the methods were evaluated (SimPLe 102 400, STORM 102 000, DreamerV3 up to 110 000)."""
REFERENCES = ("random", "human")


@dataclass(frozen=True)
class Method:
    """Source of the scores of a method."""

    name: str
    year: str
    seeds: str
    iqm: float
    """Interquartile mean of human-normalised scores over games and seeds; nan if single runs are not public."""
    optimality_gap: float
    mark: str
    source: str
    note: str
    """Reason why the scores may not be comparable."""


def _read(name: str) -> list[dict[str, str]]:
    with (FOLDER / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


_SCORES = {(row["game"], row["method"]): float(row["score"]) for row in _read("published.csv")}

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
    """Return the published mean return of a method, "random" or "human" in one of GAMES."""
    return _SCORES[game, method]


def normalize(game: str, returns: np.ndarray | float) -> np.ndarray:
    """Return human-normalised scores (...) of raw returns in one of GAMES: (returns − random) / (human − random)."""
    random, human = score(game, "random"), score(game, "human")
    return (np.asarray(returns) - random) / (human - random)


def human_normalized(method: str, games: Sequence[str] = GAMES) -> np.ndarray:
    """Return a method's human-normalised scores (games,) in some of GAMES, computed from its mean returns."""
    return np.array([normalize(game, score(game, method)) for game in games])
