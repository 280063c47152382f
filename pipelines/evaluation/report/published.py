"""Published scores on Atari 100k (26 games, 100 000 agent steps), with the source of each.

published.csv holds the raw returns, means over seeds, with the random and the human play of which human-normalised
scores are made. published_methods.csv says where each method's row comes from, under one of three marks:

- C: computed from the raw per-seed files that its authors, or those of IRIS, released; so are iqm and optimality_gap.
- V: read in a released file.
- R✓: recalled from the paper; mean, median and number of superhuman games recomputed from it equal the published ones,
  which is strong evidence for games with high scores and weak for those near zero.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
STEPS = 100_000
"""Agent steps after which the methods were scored (SimPLe 102 400, STORM 102 000, DreamerV3 up to 110 000)."""
REFERENCES = ("random", "human")


@dataclass(frozen=True)
class Method:
    """Where the scores of a method come from."""

    name: str
    year: str
    seeds: str
    iqm: float
    """Interquartile mean of human-normalised scores over games and seeds; nan if the runs are not public."""
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
"""Random and human play first, then the methods."""


def score(game: str, method: str) -> float:
    """Return the published mean return of a method (or random, or human) in one of GAMES."""
    return _SCORES[game, method]


def normalize(game: str, returns: np.ndarray | float) -> np.ndarray:
    """Return (returns − random) / (human − random) of raw returns (...) in one of GAMES."""
    random, human = score(game, "random"), score(game, "human")
    return (np.asarray(returns) - random) / (human - random)


def human_normalized(method: str, games: Sequence[str] = GAMES) -> np.ndarray:
    """Return a method's human-normalised scores in some of GAMES, (games,), made of its mean returns."""
    return np.array([normalize(game, score(game, method)) for game in games])
