"""Every environment is what gymnasium.make plays, and the traps of third-party environments are kept out."""

import json

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from datamodules.environments.control import ControlEnvironments
from datamodules.environments.environment import Transition
from modules.errors import UserError

CLASSIC = {"CartPole-v1": 250, "MountainCar-v0": 420, "Acrobot-v1": 1010}
"""Steps in which every environment closes an episode."""

pytestmark = pytest.mark.filterwarnings("ignore:.*share an object")


class Trap(gymnasium.Env):
    """Counts steps, in float64 and in one buffer; ends after `length`; actions are -1, 0 and 1, and are its reward."""

    action_space = Discrete(3, start=-1)

    def __init__(self, length: int = 4, box: Box | None = None) -> None:
        self.observation_space = box or Box(-np.inf, np.inf, (2,), np.float64)
        self.length = length
        self.buffer = np.zeros(self.observation_space.shape, self.observation_space.dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.buffer[:] = 0
        return self.buffer, {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.buffer += 1
        return self.buffer, float(action), bool(self.buffer.flat[0] == self.length), False, {}


@pytest.fixture(autouse=True)
def trap():
    gymnasium.register("Trap-v3", Trap, max_episode_steps=4)
    yield
    for id in [id for id in gymnasium.registry if id.startswith("Trap")]:
        del gymnasium.registry[id]


def random_actions(environments: ControlEnvironments, num_steps: int) -> np.ndarray:
    return np.random.default_rng(0).integers(environments.num_actions, size=(num_steps, environments.num_envs))


def play(environments: ControlEnvironments, actions: np.ndarray, stream: int = 0) -> tuple[np.ndarray, Transition]:
    """First observations (N, D), and the transitions stacked in time (T, N, ...)."""
    first = environments.reset(stream)
    transitions = [environments.step(action) for action in actions]
    return first, Transition(*(np.stack(parts) for parts in zip(*transitions, strict=True)))


def plain(id: str, seed: int, actions: np.ndarray) -> tuple[np.ndarray, Transition]:
    """What gymnasium.make plays alone: a step after an end resets instead."""
    environment = gymnasium.make(id)
    first, _ = environment.reset(seed=seed)
    rows, closed = [], False
    for action in actions:
        row = (environment.reset()[0], 0.0, False, False) if closed else environment.step(action)[:4]
        closed = row[2] or row[3]
        rows.append(row)
    return first, Transition(*(np.array(column) for column in zip(*rows, strict=True)))


# What is played.


@pytest.mark.parametrize(("id", "num_steps"), CLASSIC.items())
def test_every_environment_is_what_gymnasium_plays(id, num_steps):
    environments = ControlEnvironments(id, num_envs=2, seed=3)
    actions = random_actions(environments, num_steps)
    first, played = play(environments, actions, stream=7)
    assert first.dtype == played.observation.dtype == played.reward.dtype == np.float32
    assert played.terminated.dtype == played.truncated.dtype == bool
    assert first.shape == (2, *environments.observation_shape)
    for env, seed in enumerate(np.random.SeedSequence((3, 7)).generate_state(2) >> 1):
        expected_first, expected = plain(id, int(seed), actions[:, env])
        assert np.array_equal(first[env], expected_first)
        for got, wanted in zip(played, expected, strict=True):
            assert np.array_equal(got[:, env], wanted)
    assert (played.terminated | played.truncated).any(axis=0).all()


def test_the_row_after_a_closed_one_ignores_its_action():
    environments = ControlEnvironments("CartPole-v1", num_envs=3)
    actions = random_actions(environments, 200)
    _, played = play(environments, actions)
    opens = np.zeros((200, 3), bool)
    opens[1:] = played.terminated[:-1] | played.truncated[:-1]
    assert opens.sum() > 10
    assert (played.reward[opens] == 0).all()
    assert (np.abs(played.observation[opens]) <= 0.05).all()
    assert not (opens & (played.terminated | played.truncated)).any()
    _, again = play(environments, np.where(opens, 1 - actions, actions))
    assert all(np.array_equal(a, b) for a, b in zip(again, played, strict=True))


def test_the_time_limit_truncates():
    environments = ControlEnvironments("CartPole-v1", num_envs=2)
    observation = environments.reset()
    closed = []
    for row in range(1003):
        transition = environments.step((observation @ np.array([0.1, 0.3, 3, 1]) > 0).astype(np.int64))
        observation = transition.observation
        assert not transition.terminated.any()
        closed += [row] * bool(transition.truncated.all())
    # The 501st row opens the next episode.
    assert closed == [499, 1000]
    assert environments.description["protocol"]["max_episode_steps"] == 500


def test_an_end_at_the_time_limit_is_no_truncation():
    _, played = play(ControlEnvironments("Trap-v3", num_envs=1), np.zeros((10, 1), np.int64))
    assert np.flatnonzero(played.terminated).tolist() == [3, 8]
    assert not played.truncated.any()
    gymnasium.register("Trap-v4", Trap, max_episode_steps=3)
    _, played = play(ControlEnvironments("Trap-v4", num_envs=1), np.zeros((8, 1), np.int64))
    assert np.flatnonzero(played.truncated).tolist() == [2, 6]
    assert not played.terminated.any()


def test_actions_count_from_zero():
    environments = ControlEnvironments("Trap-v3", num_envs=3)
    environments.reset()
    assert environments.num_actions == 3
    assert environments.step(np.arange(3)).reward.tolist() == [-1, 0, 1]
    for action in (-1, 3):
        with pytest.raises(AssertionError, match="outside"):
            environments.step(np.full(3, action))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint8])
def test_vectors_are_fresh_and_float32(dtype):
    gymnasium.register("Trap-v5", Trap, kwargs={"box": Box(0, 200, (2,), dtype), "length": 9})
    environments = ControlEnvironments("Trap-v5", num_envs=2)
    seen = [environments.reset(), *(environments.step(np.zeros(2, np.int64)).observation for _ in range(5))]
    assert all(vectors.dtype == np.float32 and vectors.shape == (2, 2) for vectors in seen)
    assert [vectors[1, 0] for vectors in seen] == [0, 1, 2, 3, 4, 5]
    assert environments.description["protocol"]["max_episode_steps"] is None


def test_environments_and_streams_are_distinct_and_come_again():
    def opened(seed: int, stream: int, num_envs: int = 4) -> list[bytes]:
        return [vector.tobytes() for vector in ControlEnvironments("Acrobot-v1", num_envs, seed=seed).reset(stream)]

    envs = [*opened(0, 0), *opened(0, 1), *opened(1, 0)]
    assert len(set(envs)) == 12
    assert opened(0, 0) == envs[:4]
    assert opened(0, 1, num_envs=2) == envs[4:6], "an environment depends on how many there are"


# What is said of it.


def test_actions_have_names_where_they_are_known():
    assert ControlEnvironments("MountainCar-v0", 1).action_meanings == ("LEFT", "NOOP", "RIGHT")
    assert ControlEnvironments("Trap-v3", 1).action_meanings == ("0", "1", "2")


def test_description_survives_json():
    environments = ControlEnvironments("CartPole-v0", num_envs=1, variant="evaluation")
    assert json.loads(json.dumps(environments.description)) == environments.description
    assert environments.description["id"] == "CartPole-v0"
    assert environments.description["variant"] == "evaluation"
    assert environments.description["protocol"] == {"name": "gymnasium", "max_episode_steps": 200}
    environments.close()
    environments.close()


def test_a_package_is_imported_first():
    with pytest.raises(UserError, match="nowhere cannot be imported"):
        ControlEnvironments("nowhere:Trap-v3", 1)
    assert ControlEnvironments("gymnasium:Trap-v3", 1).description["id"] == "gymnasium:Trap-v3"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"id": "cartpole"}, ["cartpole", "nearest is CartPole-v1"]),
        ({"id": "CartPole-v7"}, ["CartPole-v7", "nearest is CartPole-v1"]),
        ({"id": "MountainCar"}, ["nearest is MountainCar-v0"]),
        ({"id": ""}, ["unknown environment ''"]),
        ({"id": "Pendulum-v1"}, ["Pendulum-v1", "Discrete"]),
        ({"id": "FrozenLake-v1"}, ["Discrete(16)", "vectors"]),
        ({"id": "Matrix-v0"}, ["(2, 3)", "vectors"]),
        ({"id": "GymV21Environment-v0"}, ["cannot be made"]),
        ({"num_envs": 0}, ["num_envs", "at least 1"]),
        ({"seed": -1}, ["seed", "negative"]),
    ],
    ids=str,
)
def test_mistakes_get_one_line(options, words, request):
    gymnasium.register("Matrix-v0", Trap, kwargs={"box": Box(0, 1, (2, 3), np.float32)})
    request.addfinalizer(lambda: gymnasium.registry.pop("Matrix-v0"))
    with pytest.raises(UserError) as raised:
        ControlEnvironments(**{"id": "CartPole-v1", "num_envs": 1} | options)
    assert "\n" not in str(raised.value)
    for word in words:
        assert word in str(raised.value)
