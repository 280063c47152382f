"""The bundled scores reproduce the aggregates that were published of them."""

import numpy as np
import pytest

from datamodules.environments.atari import canonical_game
from pipelines.evaluation.report import published


def test_it_holds_every_method_in_all_26_games():
    assert len(published.GAMES) == 26
    assert len(published.METHODS) == 17
    assert all(canonical_game(game) == game for game in published.GAMES)
    assert all(np.isfinite(published.score(game, method)) for game in published.GAMES for method in published.METHODS)
    assert all(published.score(game, "human") > published.score(game, "random") for game in published.GAMES)


def test_every_method_has_a_source():
    for method in published.METHODS.values():
        assert method.mark in ("C", "V", "R✓")
        assert method.source
        assert method.year or method.name in published.REFERENCES


@pytest.mark.parametrize(
    ("method", "mean", "median", "superhuman"),
    [
        ("random", 0.0, 0.0, 0),
        ("human", 1.0, 1.0, 26),
        ("SimPLe", 0.332, 0.134, 1),
        ("DER", 0.285, 0.161, 2),
        ("CURL", 0.381, 0.175, 2),
        ("SPR", 0.616, 0.396, 6),
        ("TWM", 0.956, 0.505, 8),
        ("IRIS", 1.046, 0.289, 10),
        ("DreamerV3", 1.282, 0.487, 7),
        ("STORM", 1.222, 0.425, 9),
        ("DIAMOND", 1.459, 0.373, 11),
        ("Δ-IRIS", 1.383, 0.594, 12),
        ("TWISTER", 1.621, 0.773, 12),
        ("Simulus", 1.645, 0.982, 13),
        ("EDELINE", 1.866, 0.817, 13),
        ("EfficientZero", 1.943, 1.090, 14),
        ("BBF", 2.247, 0.917, 12),
    ],
)
def test_published_aggregates(method, mean, median, superhuman):
    scores = published.human_normalized(method)
    assert scores.mean() == pytest.approx(mean, abs=0.002)
    assert np.median(scores) == pytest.approx(median, abs=0.002)
    assert (scores >= 1).sum() == superhuman


def test_one_seed_gives_the_published_interquartile_mean():
    scores = np.sort(published.human_normalized("EfficientZero"))
    assert scores[6:-6].mean() == pytest.approx(published.METHODS["EfficientZero"].iqm, abs=0.001)
