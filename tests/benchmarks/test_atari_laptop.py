"""What the table of agents on two cores says of runs, on returns made by hand."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import atari_laptop as laptop


def game(**agents) -> dict:
    chance = {"random": [1.0, 2.0] * 15, "random_held": [0.0] * 30, "constant": [3.0, 5.0] * 15}
    found = {"chance": chance, "agents": {}}
    for name, returns in agents.items():
        found["agents"][name] = {"commit": "a", "runs": {"0": {"returns": returns}}}
    laptop.add_statistics("krull", found)
    return found


def test_an_agent_is_above_chance_only_if_it_is_above_the_best_constant_action():
    draws = np.random.default_rng(0)
    found = game(dyna_q=list(draws.normal(4, 1, 30)), muzero=list(draws.normal(9, 1, 30)))["agents"]
    assert found["dyna_q"]["p_not_above"]["random"] < 0.01
    assert found["dyna_q"]["p_not_above"]["constant"] > 0.01
    assert not found["dyna_q"]["above_chance"]
    assert found["muzero"]["above_chance"]
    assert found["muzero"]["low"] < found["muzero"]["mean"] < found["muzero"]["high"]


def test_games_are_counted_by_agent():
    strong, weak = [20.0, 22.0] * 15, [10.0, 11.0] * 15
    games = {
        "krull": game(control=strong, control_without_model=weak, simple=strong),
        "assault": game(control=weak, control_without_model=strong, mbpo=strong),
    }
    found = laptop.counts(games)
    assert found == {
        "control_above_chance": 2,
        "dyna_above_chance": 0,
        "muzero_above_chance": 0,
        "mbpo_or_simple_above_chance": 2,
        "model_above_same_without": 1,
    }


def test_runs_of_two_commits_are_not_mixed(capsys):
    games = {"krull": game(control=[1.0, 2.0])}
    run = laptop.run_of("krull", "control", 0)
    assert laptop.held(games, run, "a")
    assert not laptop.held(games, laptop.run_of("krull", "control", 1), "a")
    assert not laptop.held(games, laptop.run_of("krull", "dyna_q", 0), "b")
    with pytest.raises(SystemExit):
        laptop.held(games, run, "b")
    line = capsys.readouterr().err
    assert "commit a" in line
    assert "this is b" in line


def test_every_agent_names_a_configuration_and_others_without_a_model():
    for agent in laptop.AGENTS.values():
        assert not agent.without_model or agent.without_model in laptop.AGENTS
