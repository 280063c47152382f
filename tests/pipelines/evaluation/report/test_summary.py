import numpy as np
import pytest

from modules.errors import UserError
from pipelines.evaluation.report import published
from pipelines.evaluation.report.runs import load
from pipelines.evaluation.report.summary import Summary
from tests.pipelines.evaluation.report.runs import write

HALF = {game: (published.score(game, "random") + published.score(game, "human")) / 2 for game in published.GAMES}


def test_aggregates_of_known_scores(tmp_path):
    for game in ("pong", "boxing", "krull"):
        for seed in range(3):
            write(tmp_path / f"half-{game}-{seed}", {100_000: HALF[game]}, experiment="half", game=game, seed=seed)
            human = published.score(game, "human")
            write(tmp_path / f"human-{game}-{seed}", {100_000: human}, experiment="human", game=game, seed=seed)
    summary = Summary(load([tmp_path]), baseline="half")
    for name, level in (("half", 0.5), ("human", 1.0)):
        for statistic, expected in (("mean", level), ("interquartile mean", level), ("optimality gap", 1 - level)):
            np.testing.assert_allclose(summary.aggregates[name][statistic], expected, atol=1e-9)
    assert summary.improvements == {"human": (1, 1, 1)}
    assert summary.notes == ["Bootstrap intervals of 3 seeds are too narrow: the true intervals are wider."]


def test_games_that_not_all_have_played_are_left_out_of_aggregates(tmp_path):
    for name, game in (("a", "pong"), ("a", "krull"), ("b", "pong"), ("a", "space_invaders"), ("b", "space_invaders")):
        write(tmp_path / f"{name}-{game}", {100_000: HALF.get(game, 9.0)}, experiment=name, game=game)
    summary = Summary(load([tmp_path]))
    assert summary.shared_games == ("pong", "space_invaders")
    assert summary.normalized_games == ("pong",)
    assert any("Statistics over games leave out krull" in note for note in summary.notes)
    assert any("Normalised scores leave out space_invaders" in note for note in summary.notes)


def test_curves_are_aligned(tmp_path):
    write(tmp_path / "0", {0: 0.0, 10: 10.0, 20: 20.0})
    write(tmp_path / "1", {0: 0.0, 5: 10.0, 15: 30.0}, seed=1)
    curve = Summary(load([tmp_path])).curves["dqn", "pong"]
    assert curve.steps.tolist() == [0, 5, 10, 15], "as far as both go"
    np.testing.assert_allclose(curve.estimate.value, [0, 7.5, 15, 22.5])
    assert (curve.estimate.low <= curve.estimate.value).all()
    np.testing.assert_allclose(curve.estimate.high, [0, 10, 20, 30])


def test_the_curve_over_games_is_normalized(tmp_path):
    for game in ("pong", "boxing"):
        random = published.score(game, "random")
        write(tmp_path / game, {0: random, 100: HALF[game]}, game=game)
    curve = Summary(load([tmp_path])).overall_curves["dqn"]
    np.testing.assert_allclose(curve.estimate.value, [0, 0.5], atol=1e-12)
    assert np.isnan(curve.estimate.low).all()


def test_runs_that_share_no_steps_have_an_empty_curve(tmp_path):
    write(tmp_path / "0", {10: 1.0})
    write(tmp_path / "1", {20: 1.0}, seed=1)
    assert not len(Summary(load([tmp_path])).curves["dqn", "pong"].steps)


def test_notes(tmp_path):
    protocol = {"name": "machado2018"}
    cut = [{"seed": 0, "return": 1.0, "length": 5, "finished": False}]
    write(tmp_path / "0", {10: 1.0}, protocol=protocol, episodes=cut)
    write(tmp_path / "1", {20: 1.0}, protocol=protocol, game="krull")
    notes = " ".join(Summary(load([tmp_path])).notes)
    for words in ("one seed", "10 to 20", "another protocol, machado2018", "1 of 3 episodes were cut"):
        assert words in notes


@pytest.mark.parametrize(("baseline", "words"), [("dqm", "the nearest is dqn"), ("dqn", "none is left")])
def test_a_wrong_baseline(tmp_path, baseline, words):
    write(tmp_path, {10: 1.0})
    with pytest.raises(UserError, match=words):
        Summary(load([tmp_path]), baseline)
