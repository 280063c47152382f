"""Clones of real games, and single emulators beside ale-py's vector."""

import dataclasses
import json
import pickle

import numpy as np
import pytest

from datamodules.environments import emulator as module
from datamodules.environments.atari import PROTOCOLS, AtariEnvironments
from datamodules.environments.emulator import AtariEmulators, areas, average_areas
from modules.errors import UserError

PLAIN = dataclasses.replace(PROTOCOLS["atari100k"], noop_max=0)
STICKY = dataclasses.replace(PLAIN, repeat_action_probability=0.25)


def random_actions(environment, num_steps, seed=0):
    return np.random.default_rng(seed).integers(environment.num_actions, size=(num_steps, environment.num_envs))


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize(("game", "color", "steps"), [("breakout", "grey", 220), ("pong", "rgb", 80)])
def test_it_plays_what_the_vector_plays(game, color, steps):
    vector = AtariEnvironments(game, 2, PLAIN, color=color, num_threads=1)
    single = AtariEmulators(game, 2, PLAIN, color=color)
    assert single.action_meanings == vector.action_meanings
    assert np.array_equal(single.reset(), vector.reset())
    earned = ended = 0
    for actions in random_actions(single, steps):
        left, right = single.step(actions), vector.step(actions)
        assert same(left[1:], right[1:])
        going = np.array([not clone.over for clone in single.clone()])
        assert np.array_equal(left.observation[going], right.observation[going]), "areas are rounded alike"
        earned, ended = earned + np.abs(left.reward).sum(), ended + left.terminated.sum()
    assert earned > 0
    assert ended > 0 or game == "pong"


def test_a_restored_clone_goes_on_as_the_game_did():
    environment = AtariEmulators("breakout", 2, "atari100k", variant="evaluation", seed=3)
    environment.reset()
    actions = random_actions(environment, 70)
    for action in actions[:30]:
        environment.step(action)
    clones, shown = environment.clone(), environment.observe()
    first = [environment.step(action) for action in actions[30:]]
    kept = pickle.loads(pickle.dumps(list(clones)))
    other = AtariEmulators("breakout", 2, "atari100k", variant="evaluation", seed=9)
    for moments, player in [(clones, environment), (clones, environment), (kept, other)]:
        assert np.array_equal(player.restore(moments), shown), "the screen of a restored game is stale"
        again = [player.step(action) for action in actions[30:]]
        assert all(same(one, two) for one, two in zip(first, again, strict=True))
    with pytest.raises(dataclasses.FrozenInstanceError):
        clones[0].lives = 9


def test_environments_change_places():
    environment = AtariEmulators("pong", 2, "atari100k", seed=1)
    environment.reset()
    for action in random_actions(environment, 30):
        environment.step(action)
    shown = environment.observe()
    assert not np.array_equal(shown[0], shown[1])
    assert np.array_equal(environment.restore(environment.clone()[::-1]), shown[::-1])


def test_a_clone_carries_the_previous_action_of_a_sticky_game():
    always = dataclasses.replace(PLAIN, repeat_action_probability=1.0)
    environment = AtariEmulators("pong", 1, PLAIN)
    environment.reset()
    right, left = environment.action_meanings.index("RIGHT"), environment.action_meanings.index("LEFT")
    for action in [0] * 20 + [right] * 6:
        environment.step(np.array([action]))
    clone = environment.clone()
    held = AtariEmulators("pong", 1, always)
    held.reset()
    for _ in range(2):
        held.restore(clone)
        environment.restore(clone)
        for _ in range(5):
            assert same(held.step(np.array([left])), environment.step(np.array([right])))
    environment.restore(clone)
    moved = [environment.step(np.array([left])) for _ in range(5)][-1]
    assert not np.array_equal(moved.observation, held.observe()), "the two actions look alike"


def test_sticky_actions_are_drawn_by_seed_and_environment():
    def frames(seed):
        environment = AtariEmulators("pong", 2, STICKY, seed=seed)
        environment.reset()
        actions = random_actions(environment, 60)[:, 0]
        return np.stack([environment.step(np.full(2, action)).observation for action in actions])

    one = frames(0)
    assert np.array_equal(one, frames(0))
    assert not np.array_equal(one, frames(1))
    assert not np.array_equal(one[:, 0], one[:, 1])


def test_the_limit_of_frames_cuts_and_a_new_game_opens():
    limited = dataclasses.replace(PLAIN, training_max_frames=22)
    environment = AtariEmulators("pong", 1, limited)
    first = environment.reset()
    ends = [environment.step(np.array([0])) for _ in range(7)]
    assert [bool(step.truncated[0]) for step in ends] == [False] * 5 + [True, False]
    assert not any(step.terminated[0] for step in ends)
    assert np.array_equal(ends[6].observation, first)
    assert environment.clone()[0].frames == 0


@pytest.mark.parametrize(("variant", "lives"), [("training", [4, 3]), ("evaluation", [0])])
def test_a_life_ends_an_episode_in_training_alone_and_the_game_goes_on(variant, lives):
    environment = AtariEmulators("breakout", 1, PLAIN, variant=variant)
    environment.reset()
    fire, left = environment.action_meanings.index("FIRE"), []
    for step in range(400):
        if environment.step(np.array([fire if step % 8 == 0 else 0])).terminated[0]:
            clone = environment.clone()[0]
            left.append(clone.lives)
            assert clone.closed
            opened = environment.step(np.array([fire]))
            assert not opened.terminated[0]
            assert environment.clone()[0].lives == (clone.lives or 5)
            assert environment.clone()[0].frames == (clone.frames + 4 if clone.lives else 0)
        if len(left) == len(lives):
            break
    assert left == lives


def test_an_end_in_the_row_that_opens_an_episode_is_held_as_the_vector_holds_it():
    free = AtariEmulators("breakout", 1, PLAIN)
    free.reset()
    actions = random_actions(free, 60)
    lost = next(t for t, action in enumerate(actions) if free.step(action).terminated[0])
    # The limit is reached by the NOOP after the lost life.
    limited = dataclasses.replace(PLAIN, training_max_frames=4 * (lost + 2))
    single, vector = AtariEmulators("breakout", 1, limited), AtariEnvironments("breakout", 1, limited)
    assert np.array_equal(single.reset(), vector.reset())
    truncated, shown = [], []
    for t, action in enumerate(actions):
        left, right = single.step(action), vector.step(action)
        assert same(left[1:], right[1:]), t
        truncated.append(bool(left.truncated[0]))
        shown.append(left.observation)
        if t == lost + 1:
            held = pickle.loads(pickle.dumps(list(single.clone())))
    assert truncated.index(True) == lost + 2
    assert np.array_equal(shown[lost + 2], shown[lost + 1])
    single.restore(held)
    assert single.step(actions[lost + 2]).truncated[0], "a clone forgot it"


def test_modes_and_difficulties_change_the_game():
    plain = AtariEmulators("breakout", 1, PLAIN)
    other = AtariEmulators("breakout", 1, PLAIN, mode=12, difficulty=1)
    # Its paddle is shorter, and its ball is another's.
    assert not np.array_equal(plain.reset(), other.reset())
    assert json.loads(json.dumps(other.description)) == other.description
    with pytest.raises(UserError, match=r"breakout has no mode 3: expected one of 0, 4, 8"):
        AtariEmulators("breakout", 1, mode=3)
    with pytest.raises(UserError, match="breakout has no difficulty 7: expected one of 0, 1"):
        AtariEmulators("breakout", 1, difficulty=7)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"game": "pongg"}, "pong"),
        ({"game": "joust"}, "single-player"),
        ({"num_envs": 0}, "num_envs"),
        ({"seed": -1}, "seed"),
    ],
)
def test_mistakes_get_one_line_before_a_game_is_loaded(options, expected, monkeypatch):
    monkeypatch.setattr(module, "ALEInterface", lambda: pytest.fail("a game was loaded"))
    with pytest.raises(UserError, match=expected) as error:
        AtariEmulators(**{"game": "pong", "num_envs": 1} | options)
    assert "\n" not in str(error.value)


def test_areas_are_averaged_in_full():
    pixels, shares = areas(5, 2)
    weights = np.zeros((2, 5))
    for which, share in zip(pixels, shares, strict=True):
        weights[np.arange(2), which] += share
    np.testing.assert_allclose(weights, [[0.4, 0.4, 0.2, 0, 0], [0, 0, 0.2, 0.4, 0.4]], atol=1e-6)
    picture = np.random.default_rng(0).integers(256, size=(2, 210, 160, 3), dtype=np.uint8)
    exact = picture.reshape(2, 105, 2, 40, 4, 3).mean(axis=(2, 4))
    assert np.abs(average_areas(picture, 105, 40) - exact).max() <= 0.5 + 1e-3
    assert np.abs(average_areas(picture, 84, 84).mean() - picture.mean()) < 0.1


@pytest.mark.parametrize(("game", "color", "size"), [("pong", "rgb", (84, 84)), ("boxing", "grey", (42, 64))])
def test_areas_are_those_of_ale_to_the_bit(game, color, size):
    made = {"game": game, "num_envs": 1, "protocol": PLAIN, "color": color, "variant": "evaluation"}
    vector, single = AtariEnvironments(**made, size=size, num_threads=1), AtariEmulators(**made, size=size)
    shown = [(vector.reset(), single.reset())]
    for action in random_actions(single, 60):
        shown.append((vector.step(action).observation, single.step(action).observation))
    assert all(np.array_equal(*pair) for pair in shown)
    assert len({left.tobytes() for left, _ in shown}) > 30


def test_a_screen_of_its_own_size_is_the_screen():
    screen = AtariEmulators("pong", 1, PLAIN, size=(210, 160))
    assert np.array_equal(screen.reset()[0, 0], screen.clone()[0].screen)
