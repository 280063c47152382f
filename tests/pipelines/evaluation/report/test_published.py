"""The bundled scores reproduce the aggregates that were published of them."""

import numpy as np
import pytest

from datamodules.environments.atari import canonical_game
from pipelines.evaluation.report import published
from pipelines.evaluation.statistics import STATISTICS


def test_it_holds_every_method_in_all_26_games():
    assert len(published.GAMES) == 26
    assert len(published.METHODS) == 21
    assert all(canonical_game(game) == game for game in published.GAMES)
    whole = [method for method in published.METHODS if method != "Simulus-A"]
    assert all(np.isfinite(published.score(game, method)) for game in published.GAMES for method in whole)
    assert all(published.score(game, "human") > published.score(game, "random") for game in published.GAMES)


def test_a_method_without_a_score_in_a_game():
    assert published.score("breakout", "Simulus-A") == pytest.approx(331.46, abs=0.01)
    assert np.isnan(published.score("pong", "Simulus-A"))
    assert published.runs("pong", "Simulus-A").shape == (1,)


def test_every_method_has_a_source():
    for method in published.METHODS.values():
        assert method.mark in ("C", "V", "R✓", "F")
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
        ("OC-STORM", 1.348, 0.438, 12),
    ],
)
def test_published_aggregates(method, mean, median, superhuman):
    scores = np.array([runs.mean() for runs in published.human_normalized(method)])
    assert scores.mean() == pytest.approx(mean, abs=0.002)
    assert np.median(scores) == pytest.approx(median, abs=0.002)
    assert (scores >= 1).sum() == superhuman


@pytest.mark.parametrize(
    ("method", "seeds", "iqm", "gap"),
    [
        ("SimPLe", 5, 0.130, 0.729),
        ("TWM", 5, 0.459, 0.513),
        ("IRIS", 5, 0.501, 0.512),
        ("STORM", 5, 0.561, 0.472),
        ("DIAMOND", 5, 0.641, 0.480),
        ("Δ-IRIS", 5, 0.682, 0.443),
        ("Simulus", 5, 0.990, 0.412),
        ("OC-STORM", 5, 0.577, 0.482),
    ],
)
def test_seeds_give_the_published_interquartile_mean(method, seeds, iqm, gap):
    scores = published.human_normalized(method)
    assert {len(runs) for runs in scores} == {seeds}
    assert STATISTICS["interquartile mean"](scores) == pytest.approx(iqm, abs=0.001)
    assert STATISTICS["optimality gap"](scores) == pytest.approx(gap, abs=0.001)


def test_released_runs_of_bbf_are_near_its_paper():
    scores = published.human_normalized("BBF")
    assert all(52 <= len(runs) <= 60 for runs in scores)
    assert {len(runs) for runs in published.human_normalized("BBF 20k")} == {18}
    for name, paper in (("mean", 2.247), ("median", 0.917)):
        assert STATISTICS[name](scores) == pytest.approx(paper, rel=0.05)
    assert STATISTICS["interquartile mean"](scores) == pytest.approx(1.023, abs=0.001)


@pytest.mark.parametrize("method", ["EfficientZero", "EfficientZero V2"])
def test_one_score_per_game_gives_the_interquartile_mean(method):
    scores = published.human_normalized(method)
    assert {len(runs) for runs in scores} == {1}
    error = 0.005 if published.METHODS[method].mark == "F" else 0.001
    assert STATISTICS["interquartile mean"](scores) == pytest.approx(published.METHODS[method].iqm, abs=error)
