"""The traps of ale-py, each on the real emulator."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from datamodules.environments import atari
from datamodules.environments.atari import PROTOCOLS, AtariEnvironments, AtariProtocol, canonical_game, game_names
from datamodules.environments.environment import Transition
from modules.errors import UserError

ATARI100K = PROTOCOLS["atari100k"]


def random_actions(environments: AtariEnvironments, num_steps: int, seed: int = 0) -> np.ndarray:
    """(T, N) actions; equal for all environments that have as many actions."""
    return np.random.default_rng(seed).integers(environments.num_actions, size=(num_steps, environments.num_envs))


def play(environments: AtariEnvironments, actions: np.ndarray, stream: int = 0) -> tuple[np.ndarray, Transition]:
    """First observations (N, C, H, W), and the transitions stacked in time (T, N, ...)."""
    first = environments.reset(stream)
    transitions = [environments.step(action) for action in actions]
    return first, Transition(*(np.stack(parts) for parts in zip(*transitions, strict=True)))


def same(left: Transition, right: Transition) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def limited(num_frames: int, protocol: AtariProtocol = ATARI100K) -> AtariProtocol:
    return dataclasses.replace(protocol, training_max_frames=num_frames, evaluation_max_frames=num_frames)


# Names and options.


@pytest.mark.parametrize(
    ("name", "game"),
    [
        ("pong", "pong"),
        ("Pong", "pong"),
        (" PONG ", "pong"),
        ("MsPacman", "ms_pacman"),
        ("ms_pacman", "ms_pacman"),
        ("ms pacman", "ms_pacman"),
        ("Ms. Pac-Man", "ms_pacman"),
        ("ALE/MsPacman-v5", "ms_pacman"),
        ("MsPacmanNoFrameskip-v4", "ms_pacman"),
        ("PongDeterministic-v4", "pong"),
        ("Breakout-v0", "breakout"),
        ("Q*bert", "qbert"),
        ("H.E.R.O.", "hero"),
        ("Montezuma's Revenge", "montezuma_revenge"),
        ("UpNDown", "up_n_down"),
        ("TicTacToe3D", "tic_tac_toe_3d"),
        ("ALE/TicTacToe3D-v5", "tic_tac_toe_3d"),
    ],
)
def test_every_usual_spelling_of_a_game(name, game):
    assert canonical_game(name) == game


def test_every_game_is_found_by_its_own_names():
    assert len(game_names()) >= 104
    for game in game_names():
        pascal = game.title().replace("_", "")
        assert canonical_game(game) == canonical_game(f"ALE/{pascal}-v5") == game


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"game": "pongg"}, "pong"),
        ({"game": ""}, "nearest"),
        ({"game": "combat"}, "single-player"),
        ({"game": "ALE/MazeCraze-v5"}, "single-player"),
        ({"game": "Joust"}, "single-player"),
        ({"game": "warlords"}, "single-player"),
        ({"protocol": "atari-100k"}, "nearest is atari100k"),
        ({"protocol": "machado"}, "nearest is machado2018"),
        ({"variant": "eval"}, "nearest is evaluation"),
        ({"color": "gray"}, "nearest is grey"),
        ({"size": (84,)}, "(height, width)"),
        ({"size": (84, 0)}, "(height, width)"),
        ({"size": (84, 84.0)}, "(height, width)"),
        ({"num_envs": 0}, "num_envs"),
        ({"seed": -1}, "seed"),
    ],
)
def test_mistakes_get_one_line_before_a_game_is_loaded(options, expected, monkeypatch):
    def load(*args, **kwargs):
        pytest.fail("a game was loaded")

    monkeypatch.setattr(atari, "AtariVectorEnv", load)
    with pytest.raises(UserError) as error:
        AtariEnvironments(**{"game": "pong", "num_envs": 1} | options)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


# What is observed.


def test_grey_frames_are_single_and_fresh():
    environments = AtariEnvironments("Breakout", num_envs=2, size=(64, 48))
    assert environments.observation_shape == (1, 64, 48)
    frames = [environments.reset()]
    copies = [frames[0].copy()]
    for action in random_actions(environments, 12):
        frames.append(environments.step(action).observation)
        copies.append(frames[-1].copy())
    for frame, copy in zip(frames, copies, strict=True):
        assert frame.shape == (2, 1, 64, 48)
        assert frame.dtype == np.uint8
        assert frame.flags.c_contiguous
        assert np.array_equal(frame, copy), "the emulator reuses its buffer"


def test_color_channels_come_first():
    grey = AtariEnvironments("ms_pacman", num_envs=1, size=(210, 160), seed=1)
    color = AtariEnvironments("ms_pacman", num_envs=1, size=(210, 160), seed=1, color="rgb")
    assert color.observation_shape == (3, 210, 160)
    # Unpooled, since the maximum of two colours is not the colour of the maximum.
    first, luminance = color.reset(), grey.reset()
    frame = color.step(np.array([0])).observation
    assert first.shape == frame.shape == (1, 3, 210, 160)
    assert first.flags.c_contiguous
    assert frame.flags.c_contiguous
    weighted = np.einsum("nchw,c->nhw", first.astype(np.float64), [0.299, 0.587, 0.114])
    assert np.abs(weighted - luminance[:, 0]).max() < 2


def test_rewards_are_raw():
    environments = AtariEnvironments("alien", num_envs=1)
    _, played = play(environments, random_actions(environments, 40))
    assert played.reward.dtype == np.float32
    assert played.reward.max() >= 10


def test_actions_and_their_meanings():
    minimal = AtariEnvironments("pong", num_envs=1)
    full = AtariEnvironments("pong", num_envs=1, protocol="machado2018")
    assert minimal.action_meanings == ("NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE")
    assert (minimal.num_actions, full.num_actions) == (6, 18)
    assert len(set(full.action_meanings)) == 18
    minimal.reset()
    for action in (-1, 6):
        with pytest.raises(AssertionError, match="outside"):
            minimal.step(np.array([action]))


def test_description_survives_json():
    environments = AtariEnvironments("Pong", num_envs=1, variant="evaluation", size=(64, 48))
    assert json.loads(json.dumps(environments.description)) == environments.description
    assert environments.description["game"] == "pong"
    assert environments.description["protocol"]["name"] == "atari100k"
    environments.close()
    environments.close()


# Seeds.


def test_streams_are_seeded_and_distinct():
    def sticky(seed: int, num_envs: int = 4) -> np.ndarray:
        environments = AtariEnvironments("pong", num_envs, protocol="machado2018", seed=seed)
        up, down = (environments.action_meanings.index(name) for name in ("RIGHT", "LEFT"))
        actions = np.tile([[up], [up], [down], [down]], (12, num_envs))
        return np.concatenate([play(environments, actions, stream)[1].observation for stream in range(2)])[..., 0, :, :]

    played = sticky(0)
    envs = [played[:, env].tobytes() for env in range(4)]
    assert len(set(envs)) == 4, "equal actions gave equal games: the emulators share one stream"
    assert not np.array_equal(played[:48], played[48:]), "another stream repeats the first"
    assert np.array_equal(sticky(0), played)
    other = sticky(1, num_envs=2)
    assert all(other[:, env].tobytes() not in envs for env in range(2))


def test_idle_frames_are_up_to_noop_max():
    """ALE draws from 0 to one below its own noop_max: that of 1 would never be idle."""
    protocol = dataclasses.replace(ATARI100K, noop_max=1)
    environments = AtariEnvironments("pong", num_envs=8, protocol=protocol)
    _, info = environments._vector.vector.reset(seed=np.arange(8))
    assert set(info["episode_frame_number"]) == {0, 1}


def test_idle_frames_make_episodes_differ_without_sticky_actions():
    environments = AtariEnvironments("freeway", num_envs=4, variant="evaluation")
    assert len({frame.tobytes() for frame in environments.reset()}) > 1


# Episodes.


@pytest.fixture(scope="module")
def whole_games() -> tuple[np.ndarray, Transition]:
    environments = AtariEnvironments("breakout", num_envs=4, variant="evaluation", seed=3)
    return play(environments, random_actions(environments, 1000))


def test_the_frame_that_closes_a_game_repeats(whole_games):
    """Should this fail after an update of ale-py: closing frames may have become true pictures."""
    _, played = whole_games
    repeats = (played.observation[1:] == played.observation[:-1]).all((2, 3, 4))
    over = played.terminated[1:]
    assert over.sum() >= 12
    assert AtariEnvironments.terminal_frame_repeats
    assert repeats[over].mean() > 0.8
    assert repeats[~over].mean() < 0.2


def test_the_row_after_a_closed_one_ignores_its_action(whole_games):
    environments = AtariEnvironments("breakout", num_envs=4, variant="evaluation", seed=3)
    _, played = whole_games
    actions = random_actions(environments, 1000)
    opens = np.zeros_like(played.terminated)
    opens[1:] = played.terminated[:-1] | played.truncated[:-1]
    assert not (opens & (played.terminated | played.truncated)).any()
    assert (played.reward[opens] == 0).all()
    rows = 400
    assert opens[:rows].any()
    actions[opens] = (actions[opens] + 1) % environments.num_actions
    _, again = play(environments, actions[:rows])
    assert same(again, Transition(*(part[:rows] for part in played)))


def test_a_lost_life_ends_a_training_episode_and_the_game_goes_on():
    training = AtariEnvironments("breakout", num_envs=1, seed=5)
    evaluation = AtariEnvironments("breakout", num_envs=1, variant="evaluation", seed=5)
    actions = random_actions(training, 400)
    first, lives = play(training, actions)
    opens = np.zeros_like(lives.terminated)
    opens[1:] = lives.terminated[:-1]
    assert not (opens & lives.terminated).any()
    assert (lives.reward[opens] == 0).all()
    # One NOOP opens the next life, whatever was asked: the whole game with that NOOP is the same game.
    actions[opens] = training.action_meanings.index("NOOP")
    first_again, games = play(evaluation, actions)
    assert np.array_equal(first, first_again)
    assert np.array_equal(lives.observation, games.observation)
    assert np.array_equal(lives.reward, np.where(opens, 0, games.reward))
    assert lives.terminated[games.terminated].all()
    over = np.flatnonzero(games.terminated)
    assert len(over) >= 2
    assert lives.terminated[: over[0] + 1].sum() == 5
    # A lost life does not leave the frame skip: its frame is true.
    lost = np.flatnonzero(lives.terminated & ~games.terminated)
    repeats = [np.array_equal(lives.observation[t], lives.observation[t - 1]) for t in lost]
    assert np.mean(repeats) < 0.5


def test_sticky_protocol_has_no_life_signal():
    played = []
    for variant in ("training", "evaluation"):
        environments = AtariEnvironments("breakout", 2, "machado2018", variant, seed=2)  # type: ignore[arg-type]
        played.append(play(environments, random_actions(environments, 400))[1])
    assert played[0].terminated.any()
    assert same(*played)


@pytest.mark.parametrize("variant", ["training", "evaluation"])
def test_time_limit_truncates(variant):
    environments = AtariEnvironments("pong", num_envs=2, protocol=limited(40), variant=variant)
    _, played = play(environments, random_actions(environments, 33))
    # Ten rows reach the limit, the eleventh opens the next episode.
    expected = np.zeros((33, 2), bool)
    expected[[9, 20, 31]] = True
    assert np.array_equal(played.truncated, expected)
    assert not played.terminated.any()


def test_an_episode_that_ends_as_it_opens_gets_a_row_to_close():
    free = AtariEnvironments("breakout", num_envs=1, seed=5)
    actions = random_actions(free, 60)
    _, played = play(free, actions)
    lost = int(np.flatnonzero(played.terminated)[0])
    # The limit is reached by the NOOP after the lost life.
    cut = AtariEnvironments("breakout", num_envs=1, protocol=limited(4 * (lost + 2)), seed=5)
    _, limited_played = play(cut, actions)
    assert np.array_equal(limited_played.observation[: lost + 2], played.observation[: lost + 2])
    assert np.array_equal(np.flatnonzero(limited_played.terminated)[:1], [lost])
    assert np.array_equal(np.flatnonzero(limited_played.truncated)[:1], [lost + 2])
    assert np.array_equal(limited_played.observation[lost + 2], limited_played.observation[lost + 1])
    closed = limited_played.terminated | limited_played.truncated
    assert not (closed[1:] & closed[:-1]).any()


# All games.

STEP_GAMES = """
import sys
import numpy as np
from datamodules.environments.atari import AtariEnvironments
for game in sys.argv[1:]:
    environments = AtariEnvironments(game, num_envs=1)
    environments.reset()
    assert len(environments.action_meanings) == environments.num_actions <= 18
    for action in np.random.default_rng(0).integers(environments.num_actions, size=(12, 1)):
        observation = environments.step(action).observation
    assert observation.shape == (1, 1, 84, 84)
    environments.close()
print("all played")
"""


def step_games(*games: str) -> None:
    # In a process of its own: a game that ALE cannot wrap ends the process without an exception.
    result = subprocess.run([sys.executable, "-c", STEP_GAMES, *games], capture_output=True, text=True, check=False)
    assert "all played" in result.stdout, result.stderr


def test_diverse_games_play():
    # Among them: no NOOP in the minimal set (backgammon), no lives (pong), three actions (skiing).
    step_games("backgammon", "pong", "skiing", "freeway", "montezuma_revenge", "tetris", "tic_tac_toe_3d", "qbert")


@pytest.mark.slow
def test_all_games_play():
    step_games(*game_names())
