"""Random play: how long it holds its actions."""

from itertools import pairwise

import numpy as np
import pytest

from datamodules.acting import Moment
from modules.errors import UserError
from pipelines.acting.actors import RandomActor
from pipelines.acting.exploration import Exploration, Explorer

NUM_ENVS, STEPS, ACTIONS = 50, 400, 18


def played(actor: RandomActor, first: np.ndarray) -> np.ndarray:
    """The actions (T, N) in environments whose episodes open at `first` (T, N)."""
    return np.stack([actor.act(Moment(np.zeros((NUM_ENVS, 2)), is_first))[0] for is_first in first])


def test_actions_are_held_for_steps_of_a_zeta_distribution():
    first = np.zeros((STEPS, NUM_ENVS), bool)
    first[0] = True
    actions = played(RandomActor(ACTIONS, np.random.default_rng(0), Exploration(persistence=2.0)), first)
    changes = actions[1:] != actions[:-1]
    durations = np.concatenate([np.diff(np.flatnonzero(env)) for env in changes.T])
    # Of zeta(2), 6/pi^2 last one step and 1.5/pi^2 two; one draw in 18 repeats the action before it.
    assert (durations == 1).mean() == pytest.approx(6 / np.pi**2 * 17 / 18, abs=0.03)
    assert (durations == 2).mean() == pytest.approx(1.5 / np.pi**2 + 1 / 18 * (6 / np.pi**2) ** 2, abs=0.03)
    assert durations.max() > 30
    assert np.bincount(actions.reshape(-1), minlength=ACTIONS).min() > 0


def test_an_episode_opens_with_a_new_action():
    first = np.ones((STEPS, NUM_ENVS), bool)
    actions = played(RandomActor(ACTIONS, np.random.default_rng(0), Exploration(persistence=1.1)), first)
    assert (actions[1:] == actions[:-1]).mean() == pytest.approx(1 / ACTIONS, abs=0.01)


def test_without_persistence_every_action_is_drawn():
    actions = played(RandomActor(ACTIONS, np.random.default_rng(0)), np.zeros((STEPS, NUM_ENVS), bool))
    assert (actions[1:] == actions[:-1]).mean() == pytest.approx(1 / ACTIONS, abs=0.01)


def test_a_persistence_that_would_never_end_is_refused():
    with pytest.raises(UserError, match="must be more than 1: got 1"):
        Exploration(persistence=1.0)


def test_a_hold_ends_where_its_action_is_not_legal():
    explorer = Explorer(Exploration(persistence=1.1), np.random.default_rng(0))
    everywhere, drawn = np.ones(NUM_ENVS, bool), np.full(NUM_ENVS, 2)
    assert (explorer.hold(drawn, drawn, everywhere, None) == 2).all()
    held = explorer.left > 0
    assert held.any()
    assert not held.all()
    legal = np.ones((NUM_ENVS, ACTIONS), bool)
    legal[::2, 2] = False
    played = explorer.hold(np.full(NUM_ENVS, 1), np.full(NUM_ENVS, 3), ~everywhere, legal)
    assert np.array_equal(played == 2, held & legal[:, 2])
    assert set(played.tolist()) == {1, 2}, "elsewhere the chosen action"


def explored(explorer: Explorer, steps: int, is_first: np.ndarray | None = None) -> np.ndarray:
    """The actions (T, N) of a player that would always choose action 0."""
    nowhere = np.zeros(NUM_ENVS, bool)
    played = []
    for _ in range(steps):
        explorer.forget(nowhere if is_first is None else is_first)
        played.append(explorer.explore(np.zeros(NUM_ENVS, np.int64), 1000, None))
    return np.stack(played)


def test_random_actions_in_between_are_held_by_the_same_law():
    """A thousand actions, so that a drawn one is hardly ever the chosen one or the one before."""
    actions = explored(Explorer(Exploration(epsilon=0.02, persistence=2.0), np.random.default_rng(0)), 4000)
    changes = actions[1:] != actions[:-1]
    lengths, begun = [], 0
    for env, changed in zip(actions.T, changes.T, strict=True):
        edges = np.concatenate([[0], np.flatnonzero(changed) + 1, [len(env)]])
        lengths += [end - start for start, end in pairwise(edges[1:-1]) if env[start]]
        begun += np.count_nonzero(env[edges[:-1]])
    lengths = np.array(lengths)
    assert (lengths == 1).mean() == pytest.approx(6 / np.pi**2, abs=0.03)
    assert (lengths == 2).mean() == pytest.approx(1.5 / np.pi**2, abs=0.02)
    # A hold begins with probability epsilon at every step without one: where the player chose, and where it began.
    assert begun / (begun + (actions == 0).sum()) == pytest.approx(0.02, abs=0.002)


def test_an_episode_ends_a_hold_of_a_random_action():
    explorer = Explorer(Exploration(epsilon=0.1, persistence=1.1), np.random.default_rng(0))
    actions = explored(explorer, 400, np.ones(NUM_ENVS, bool))
    assert (actions != 0).mean() == pytest.approx(0.1, abs=0.01)
    held = explored(Explorer(Exploration(epsilon=0.1, persistence=1.1), np.random.default_rng(0)), 400)
    assert (held != 0).mean() > 0.5


def test_holds_go_on_where_they_stopped():
    exploration, generator = Exploration(epsilon=0.3, persistence=1.5), np.random.default_rng(1)
    explorer = Explorer(exploration, generator)
    explored(explorer, 20)
    state, drawn = explorer.state_dict(), generator.bit_generator.state
    expected = explored(explorer, 20)
    again = Explorer(exploration, np.random.default_rng(2))
    again.load_state_dict(state)
    again.generator.bit_generator.state = drawn
    assert np.array_equal(explored(again, 20), expected)
