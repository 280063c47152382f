import itertools

import numpy as np
import pytest

from pipelines.evaluation.statistics import (
    STATISTICS,
    estimate,
    interquartile_mean,
    mean,
    median,
    optimality_gap,
    probability_of_improvement,
)


def arrays(*games):
    return [np.array(game, float) for game in games]


def test_by_hand():
    scores = arrays([0, 2], [4, 4], [0, 0.5])  # game means 1, 4 and 0.25
    assert mean(scores) == 1.75
    assert median(scores) == 1
    assert interquartile_mean(scores) == (0 + 0.5 + 2 + 4) / 4  # floor(6 / 4) = 1 goes at each end
    assert optimality_gap(scores) == pytest.approx(1 - (0.5 + 1 + 0.25) / 3)


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (3, 3), (4, 2), (5, 3), (7, 5), (8, 4), (130, 66)])
def test_whole_runs_are_trimmed(count, kept):
    scores = np.random.default_rng(0).permutation(count).astype(float) ** 2
    cut = (count - kept) // 2
    assert interquartile_mean([scores]) == np.sort(scores)[cut : count - cut].mean()


def test_an_outlier_moves_the_mean_alone():
    scores, wild = arrays([1, 2, 3, 4], [1, 2, 3, 4]), arrays([1, 2, 3, 4], [1, 2, 3, 400])
    assert interquartile_mean(wild) == interquartile_mean(scores)
    assert mean(wild) > 10 * mean(scores)


def test_games_with_different_numbers_of_runs():
    scores = arrays([1], [2, 4, 6])
    assert mean(scores) == 2.5
    assert interquartile_mean(scores) == 3
    unknown = estimate(scores, STATISTICS)["mean"]
    assert unknown.value == 2.5
    assert np.isnan([unknown.low, unknown.high]).all()


def test_the_bootstrap_is_that_of_all_resamples():
    """Of 3 and 2 runs there are 27 x 4 resamples, all equally likely."""
    x, y = [0.0, 1.0, 5.0], [2.0, 3.0]
    resamples = [arrays(a, b) for a in itertools.product(x, repeat=3) for b in itertools.product(y, repeat=2)]
    found = estimate(arrays(x, y), STATISTICS, resamples=200_000)
    for name, statistic in STATISTICS.items():
        exact = np.quantile([statistic(resample) for resample in resamples], [0.025, 0.975], method="inverted_cdf")
        assert found[name].value == statistic(arrays(x, y))
        np.testing.assert_allclose([found[name].low, found[name].high], exact, atol=1e-9, err_msg=name)


def test_runs_stay_in_their_game():
    """Games differ by far more than runs: draws across games would give wide intervals."""
    games = [1000.0 * game + np.random.default_rng(game).normal(size=5) for game in range(6)]
    found = estimate(games, {"mean": mean})["mean"]
    assert found.high - found.low < 2


def test_the_same_seed_gives_the_same_interval():
    scores = [np.random.default_rng(0).normal(size=10)]
    first, again, other = (estimate(scores, {"mean": mean}, seed, 100)["mean"] for seed in (0, 0, 1))
    assert first == again
    assert first.low != other.low


def test_a_curve_is_estimated_at_once():
    runs = np.random.default_rng(0).normal(size=(7, 5)) + np.arange(7)[:, None]
    curve = estimate([runs], {"mean": mean})["mean"]
    assert curve.low.shape == (7,)
    for step in range(7):
        alone = estimate([runs[step]], {"mean": mean})["mean"]
        np.testing.assert_allclose([bound[step] for bound in curve], alone)


@pytest.mark.parametrize("name", STATISTICS)
def test_intervals_cover_the_truth(name):
    """10 runs of 12 games: 95% intervals hold the truth of the population in 89 to 99% of experiments."""
    generator = np.random.default_rng(0)
    levels = np.linspace(0.1, 2, 12)
    statistic = STATISTICS[name]
    truth = statistic([level + 0.4 * generator.normal(size=50_000) for level in levels])
    held = 0
    for trial in range(300):
        scores = [level + 0.4 * generator.normal(size=10) for level in levels]
        found = estimate(scores, {name: statistic}, trial, 500)[name]
        held += found.low <= truth <= found.high
    assert 0.89 <= held / 300 <= 0.99


def test_probability_of_improvement_by_hand():
    x, y = arrays([1, 3], [5]), arrays([2, 3], [5])
    # First game: 1 loses twice, 3 beats 2 and ties with 3; second game: a tie.
    assert probability_of_improvement(x, y).value == pytest.approx((1.5 / 4 + 0.5) / 2)
    assert probability_of_improvement(arrays([4, 5]), arrays([1, 2])) == (1, 1, 1)
    assert np.isnan(probability_of_improvement(x, y).low)
    assert probability_of_improvement(x, y).value + probability_of_improvement(y, x).value == pytest.approx(1)


def test_its_bootstrap_is_that_of_all_resamples():
    x, y = [0.0, 2.0, 3.0], [1.0, 2.0]
    exact = [
        np.mean([(a > b) + 0.5 * (a == b) for a in xs for b in ys])
        for xs in itertools.product(x, repeat=3)
        for ys in itertools.product(y, repeat=2)
    ]
    found = probability_of_improvement(arrays(x), arrays(y), resamples=200_000)
    bounds = np.quantile(exact, [0.025, 0.975], method="inverted_cdf")
    np.testing.assert_allclose([found.low, found.high], bounds, atol=1e-9)
