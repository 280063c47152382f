"""Environments that are taken up again in the middle: the same to the bit, in real games."""

import io

import numpy as np
import pytest
import torch

from datamodules.environments import seeded
from datamodules.environments.atari import AtariEnvironments
from datamodules.environments.control import ControlEnvironments
from datamodules.environments.mazes import MazeEnvironments
from modules.errors import UserError


def breakout():
    """Lives that end episodes, no stickiness."""
    return AtariEnvironments("breakout", 3, "atari100k", size=(42, 42), seed=3)


def pong():
    """Sticky actions, no lives."""
    return AtariEnvironments("pong", 2, "machado2018", size=(42, 42), seed=4)


def cartpole():
    return ControlEnvironments("CartPole-v1", 4, seed=5)


def maze():
    return MazeEnvironments("blocking", 3, change_at=40, max_steps=25)


def play(environment, steps, source):
    return [environment.step(source.integers(0, environment.num_actions, environment.num_envs)) for _ in range(steps)]


def same(one, other):
    return all(np.array_equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("make", [breakout, pong, cartpole, maze])
@pytest.mark.parametrize("steps", [0, 1, 57, 300])
def test_it_goes_on_as_if_nothing_had_happened(make, steps):
    straight, stopped, resumed = make(), make(), make()
    observation = straight.reset(7)
    stopped.reset(7)
    source = np.random.default_rng(0)
    before = play(straight, steps, source)
    play(stopped, steps, np.random.default_rng(0))
    kept = io.BytesIO()
    torch.save(stopped.state_dict(), kept)
    kept.seek(0)
    restored = resumed.load_state_dict(torch.load(kept, weights_only=True))
    assert np.array_equal(restored, before[-1].observation if before else observation)
    moment = source.bit_generator.state
    after = play(straight, 250, source)
    again = np.random.default_rng()
    again.bit_generator.state = moment
    assert same(after, play(resumed, 250, again))
    assert make is pong or any(row.terminated.any() or row.truncated.any() for row in after)
    for environment in (straight, stopped, resumed):
        environment.close()


def test_what_was_played_long_ago_is_forgotten_and_the_rest_leads_to_the_same_moment(monkeypatch):
    monkeypatch.setattr(seeded, "RESEED_AFTER", 50)
    straight, resumed = cartpole(), cartpole()
    straight.reset()
    source = np.random.default_rng(0)
    play(straight, 600, source)
    state = straight.state_dict()
    assert 0 < max(len(actions) for actions in state["actions"]) < 250
    assert len({len(actions) for actions in state["actions"]}) > 1
    assert (state["renewals"] > 2).all()
    resumed.load_state_dict(state)
    moment = source.bit_generator.state
    after = play(straight, 300, source)
    source.bit_generator.state = moment
    assert same(after, play(resumed, 300, source))


def test_a_renewed_game_of_atari_goes_on_as_well(monkeypatch):
    monkeypatch.setattr(seeded, "RESEED_AFTER", 100)
    straight, resumed = breakout(), breakout()
    straight.reset()
    play(straight, 400, np.random.default_rng(0))
    state = straight.state_dict()
    assert (state["games"]["renewals"] > 0).any()
    resumed.load_state_dict(state)
    after, again = (play(environment, 200, np.random.default_rng(1)) for environment in (straight, resumed))
    assert same(after, again)


def test_replayed_games_that_differ_are_refused(monkeypatch):
    environment = breakout()
    environment.reset()
    play(environment, 50, np.random.default_rng(0))
    state = environment.state_dict()
    state["games"]["seeds"] += 1
    state["games"]["actions"] = [actions.flip(0) for actions in state["games"]["actions"]]
    with pytest.raises(UserError, match="replayed games differ"):
        breakout().load_state_dict(state)
