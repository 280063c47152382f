"""What benchmarks say of the evaluations of their runs."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import atari100k
import training

from tests.pipelines.evaluation.report.runs import evaluation

BEGUN = "2026-01-01T10:00:00+00:00"


def at(minute: int, score: float, steps: int = 0, episodes: int = 10):
    """An evaluation that ended so many minutes after BEGUN."""
    played = [{"seed": n, "return": score, "length": 9, "finished": True} for n in range(episodes)]
    return evaluation(env_steps=steps, episodes=played, date=f"2026-01-01T10:{minute:02}:30+00:00")


def test_a_curve_says_when_every_evaluation_ended():
    found = training.curve([at(2, -20.0, 1000), at(5, 3.0, 2000, episodes=30), evaluation(env_steps=3000)], BEGUN)
    assert found["curve"] == [[1000, -20.0], [2000, 3.0], [3000, 1.0]]
    assert found["curve_minutes"] == [2.5, 5.5, None], "older runs have no dates"
    assert found["curve_episodes"] == [10, 30, 2]


def test_pauses_between_pieces_do_not_count():
    found = atari100k.curve([at(59, 0.0), at(4, 1.0)], BEGUN, earlier=8.25, minutes=[3.0])
    assert found["curve_minutes"] == [3.0, 12.75]


def seeds(*scores, **changes):
    """Three runs with the same scores, one minute after the other."""
    runs = [[at(10 * n + seed, score, **changes) for n, score in enumerate(scores)] for seed in range(3)]
    return [training.curve(run, BEGUN) for run in runs]


def test_the_slowest_seed_gives_the_minutes_to_a_record():
    assert training.minutes_to_record("pong", seeds(-21.0, 18.0, 20.0)) == 12.5
    assert training.minutes_to_record("freeway", seeds(-21.0, 18.0, 20.0)) == 22.5
    assert training.minutes_to_record("kung_fu_master", seeds(-21.0, 18.0, 20.0)) is None


def test_the_mean_over_seeds_makes_a_record():
    runs = [training.curve([at(1, score)], BEGUN) for score in (16.0, 18.0, 20.0)]
    assert training.minutes_to_record("pong", runs) == 1.5
    assert training.minutes_to_record("pong", [*runs[:2], training.curve([at(1, 19.0)], BEGUN)]) is None


@pytest.mark.parametrize(
    "runs",
    [seeds(20.0)[:2], seeds(20.0, episodes=8), [{"curve": [[0, 20.0]]}] * 3],
    ids=["two seeds", "eight episodes", "without minutes"],
)
def test_what_makes_no_record(runs):
    assert training.minutes_to_record("pong", runs) is None


def test_records_of_runs_in_pieces():
    runs = {f"bbf/pong/{seed}": found for seed, found in enumerate(seeds(19.0))}
    assert atari100k.records(runs | {"bbf/krull/0": {}, "gumbel/pong/0": {}}) == {"bbf/pong": 2.5, "gumbel/pong": None}
