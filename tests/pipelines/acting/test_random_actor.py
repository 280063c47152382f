"""Random play: how long it holds its actions."""

import numpy as np
import pytest

from datamodules.acting import Moment
from modules.errors import UserError
from pipelines.acting.actors import RandomActor

NUM_ENVS, STEPS, ACTIONS = 50, 400, 18


def played(actor: RandomActor, first: np.ndarray) -> np.ndarray:
    """The actions (T, N) in environments whose episodes open at `first` (T, N)."""
    return np.stack([actor.act(Moment(np.zeros((NUM_ENVS, 2)), is_first))[0] for is_first in first])


def test_actions_are_held_for_steps_of_a_zeta_distribution():
    first = np.zeros((STEPS, NUM_ENVS), bool)
    first[0] = True
    actions = played(RandomActor(ACTIONS, np.random.default_rng(0), persistence=2.0), first)
    changes = actions[1:] != actions[:-1]
    durations = np.concatenate([np.diff(np.flatnonzero(env)) for env in changes.T])
    # Of zeta(2), 6/pi^2 last one step and 1.5/pi^2 two; one draw in 18 repeats the action before it.
    assert (durations == 1).mean() == pytest.approx(6 / np.pi**2 * 17 / 18, abs=0.03)
    assert (durations == 2).mean() == pytest.approx(1.5 / np.pi**2 + 1 / 18 * (6 / np.pi**2) ** 2, abs=0.03)
    assert durations.max() > 30
    assert np.bincount(actions.reshape(-1), minlength=ACTIONS).min() > 0


def test_an_episode_opens_with_a_new_action():
    first = np.ones((STEPS, NUM_ENVS), bool)
    actions = played(RandomActor(ACTIONS, np.random.default_rng(0), persistence=1.1), first)
    assert (actions[1:] == actions[:-1]).mean() == pytest.approx(1 / ACTIONS, abs=0.01)


def test_without_persistence_every_action_is_drawn():
    actions = played(RandomActor(ACTIONS, np.random.default_rng(0)), np.zeros((STEPS, NUM_ENVS), bool))
    assert (actions[1:] == actions[:-1]).mean() == pytest.approx(1 / ACTIONS, abs=0.01)


def test_a_persistence_that_would_never_end_is_refused():
    with pytest.raises(UserError, match="must be more than 1: got 1"):
        RandomActor(ACTIONS, np.random.default_rng(0), persistence=1.0)
