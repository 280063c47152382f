import json
import warnings

import ale_py
import gymnasium
import minari
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from minari.data_collector import EpisodeBuffer

from datamodules.environments.emulator import average_areas
from datamodules.minari.export import FOLDER, export_store
from datamodules.minari.foreign import Foreign, spread
from datamodules.minari.import_ import import_dataset, open_dataset
from datamodules.replay.store import ReplayStore
from modules.errors import UserError

EXTRAS = {"value": ("float32", ()), "search_policy": ("float32", (3,)), "visits": ("int16", (3,))}
gymnasium.register_envs(ale_py)


def silent(amount: int) -> None:
    """Show no progress."""


def record(path, rows, capacity, shape=(3, 6, 5), dtype=np.uint8, cuts=(), num_envs=3) -> ReplayStore:
    """A store of random rows, whose episodes of environment l close at every (5 + l)th row and begin anew at cuts."""
    generator = np.random.default_rng(0)
    store = ReplayStore.create(
        path,
        observation_shape=shape,
        observation_dtype=dtype,
        num_actions=3,
        num_envs=num_envs,
        capacity=capacity,
        num_validation_envs=1,
        extras=EXTRAS,
        description={
            "game": "pong",
            "protocol": {"frame_skip": 4},
            "seeds": [1, 2],
            "action_meanings": ["A", "B", "C"],
        },
    )
    is_first = np.ones(num_envs, bool)
    for row in range(rows):
        is_first |= row in cuts
        is_last = ~is_first & (row % (5 + np.arange(num_envs)) == 0)
        extras = {
            name: generator.normal(size=(num_envs, *shape)).astype(kind) for name, (kind, shape) in EXTRAS.items()
        }
        store.append(
            generator.integers(0, 256, (num_envs, *shape)).astype(dtype),
            generator.integers(0, 3, num_envs),
            generator.normal(size=num_envs),
            generator.random(num_envs) < 0.3,
            is_first,
            is_last,
            extras,
        )
        is_first = is_last
    return store


def again(store, tmp_path) -> ReplayStore:
    """Export a store and import it."""
    export_store(store, "space/random-v0", tmp_path / "minari", silent)
    dataset = open_dataset("space/random-v0", tmp_path / "minari")
    return import_dataset(dataset, tmp_path / "again", Foreign(), silent)


def check_rows(made, store) -> None:
    """Assert that two stores hold the same valid rows, bit for bit."""
    assert made.num_rows == store.num_rows
    envs, length = np.arange(store.num_envs), store.rows - store.oldest
    one = store.gather(envs, np.full(store.num_envs, store.oldest), length)
    other = made.gather(envs, np.full(store.num_envs, made.oldest), length)
    assert one.extras.keys() == other.extras.keys() == EXTRAS.keys()
    for a, b in zip(one.tensors(), other.tensors(), strict=True):
        assert a.dtype == b.dtype
        assert a.numpy().tobytes() == b.numpy().tobytes()


@pytest.mark.parametrize(("shape", "dtype"), [((1, 40, 36), np.uint8), ((4,), np.float32)], ids=["frames", "vectors"])
def test_a_store_comes_back_byte_for_byte(tmp_path, shape, dtype):
    """Its last episodes go on, one of them has a single row, and the runs were cut twice."""
    store = record(tmp_path / "store", 31, 31, shape, dtype, cuts=(12, 13))
    made = again(store, tmp_path)
    check_rows(made, store)
    for name in ("observation.bin", "rows.bin", "meta.json"):
        assert (made.path / name).read_bytes() == (store.path / name).read_bytes(), name
    made.close()
    assert ReplayStore.open(made.path).description == store.description


def test_a_ring_that_has_wrapped_leaves_its_valid_rows(tmp_path):
    store = record(tmp_path / "store", 70, 32)
    assert store.oldest == 38
    check_rows(again(store, tmp_path), store)


def test_others_can_read_what_is_exported(tmp_path, monkeypatch):
    store = record(tmp_path / "store", 31, 31)
    export_store(store, "random-v0", tmp_path, silent)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    dataset = minari.load_dataset("random-v0")
    assert dataset.observation_space == Box(0, 255, (6, 5, 3), np.uint8)
    _, first = store.episode_starts(1, np.array([0]))
    episode, rows = dataset[1], store.gather(np.array([0]), first[1:2], 5)
    assert rows.is_last[0, -1]
    assert np.array_equal(episode.observations, rows.observation[0].permute(0, 2, 3, 1).numpy())
    assert np.array_equal(episode.actions, rows.action[0, :-1].numpy())
    assert np.array_equal(episode.rewards, rows.reward[0, :-1].numpy())
    for episode in dataset:
        assert len(episode.observations) == len(episode) + 1
        assert episode.terminations[-1] or episode.truncations[-1]


def test_a_failure_leaves_nothing_behind(tmp_path):
    def fail(amount: int) -> None:
        raise KeyboardInterrupt

    store = record(tmp_path / "store", 31, 31)
    with pytest.raises(KeyboardInterrupt):
        export_store(store, "random-v0", tmp_path / "minari", fail)
    assert not (tmp_path / "minari" / "random-v0").exists()
    export_store(store, "random-v0", tmp_path / "minari", silent)
    with pytest.raises(KeyboardInterrupt):
        import_dataset(open_dataset("random-v0", tmp_path / "minari"), tmp_path / "again", Foreign(), fail)
    assert not (tmp_path / "again").exists()


def test_what_cannot_be_exported(tmp_path, monkeypatch):
    store = record(tmp_path / "store", 5, 5)
    export_store(store, "random-v0", tmp_path, silent)
    with pytest.raises(UserError, match="exists already"):
        export_store(store, "random-v0", tmp_path, silent)
    with pytest.raises(UserError, match="expected name-v0"):
        export_store(store, "random", tmp_path, silent)
    with pytest.raises(UserError, match="no rows"):
        export_store(record(tmp_path / "empty", 0, 5), "empty-v0", tmp_path, silent)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="GiB are free"):
        export_store(store, "other-v0", tmp_path, silent)


# Others' datasets.


def dataset(folder, id, episodes, env=None, **spaces):
    """Write a dataset as others do, by Minari's own functions and defaults."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv(FOLDER, str(folder))
        return minari.create_dataset_from_buffers(id, episodes, env=env, **spaces)


def play(env, steps, episodes) -> list[EpisodeBuffer]:
    """Random episodes of so many steps at most, as buffers."""
    buffers = []
    env.action_space.seed(0)
    for seed in range(episodes):
        observations, actions, rewards, terminations, truncations = [env.reset(seed=seed)[0]], [], [], [], []
        while len(actions) < steps and not (terminations and terminations[-1]):
            actions.append(env.action_space.sample())
            observation, reward, terminated, _, _ = env.step(actions[-1])
            observations.append(observation)
            rewards.append(float(reward))
            terminations.append(terminated)
            truncations.append(len(actions) == steps and not terminated)
        buffers.append(
            EpisodeBuffer(
                observations=observations,
                actions=actions,
                rewards=rewards,
                terminations=terminations,
                truncations=truncations,
                infos={},
            )
        )
    return buffers


def rows_of(store) -> list:
    """All columns of all environments, one environment after the other."""
    batch = store.gather(np.arange(store.num_envs), np.zeros(store.num_envs, int), store.rows)
    return [tensor.flatten(0, 1).numpy() for tensor in batch.tensors()]


def test_atari_of_others(tmp_path):
    env = gymnasium.make("ALE/Breakout-v5", frameskip=3)
    buffers = play(env, 40, 3)
    found = dataset(tmp_path, "breakout-v0", buffers, env, jpeg_encoding=False)
    store = import_dataset(found, tmp_path / "store", Foreign((48, 64), "rgb", num_envs=4), silent)
    rows = sum(len(buffer.actions) + 1 for buffer in buffers)
    assert (store.num_envs, store.rows, store.num_validation_envs) == (4, rows // 4, 1)
    action, reward, continuation, is_first, is_last, observation = rows_of(store)
    kept = len(action)
    frames = np.concatenate([np.stack(buffer.observations) for buffer in buffers])
    assert np.array_equal(observation, average_areas(frames, 48, 64).transpose(0, 3, 1, 2)[:kept])
    assert np.array_equal(action, np.concatenate([[*buffer.actions, 0] for buffer in buffers])[:kept])
    assert np.array_equal(reward, np.concatenate([[*buffer.rewards, 0] for buffer in buffers])[:kept])
    assert np.array_equal(1 - continuation, np.concatenate([[*b.terminations, 0] for b in buffers])[:kept])
    assert (is_first.sum(), is_last.sum()) == (3, 2 if kept < rows else 3)
    assert is_first[[0, *np.flatnonzero(is_last)[: is_first.sum() - 1] + 1]].all()
    description = store.description
    assert (description["game"], description["size"]) == ("breakout", [48, 64])
    assert description["action_meanings"] == ["NOOP", "FIRE", "RIGHT", "LEFT"]
    protocol = description["protocol"]
    assert (protocol["frame_skip"], protocol["maxpool"], protocol["life_loss_terminates"]) == (3, False, False)
    assert (protocol["repeat_action_probability"], protocol["noop_max"]) == (0.25, 0)


def test_the_protocol_of_preprocessed_games_is_told_by_their_wrapper(tmp_path):
    env = gymnasium.make("ALE/Breakout-v5", frameskip=1, full_action_space=True)
    found = dataset(tmp_path, "breakout-v0", play(env, 5, 1), env)
    path = found.storage.data_path / "metadata.json"
    metadata = json.loads(path.read_text())
    wrapper = {"frame_skip": 5, "noop_max": 10, "terminal_on_life_loss": True}
    spec = json.loads(metadata["env_spec"]) | {
        "additional_wrappers": [{"name": "AtariPreprocessing", "entry_point": "a:b", "kwargs": wrapper}]
    }
    path.write_text(json.dumps(metadata | {"env_spec": json.dumps(spec)}))
    found = open_dataset("breakout-v0", tmp_path)
    protocol = import_dataset(found, tmp_path / "store", Foreign(num_envs=2), silent).description["protocol"]
    assert (protocol["frame_skip"], protocol["maxpool"], protocol["life_loss_terminates"]) == (5, True, True)
    assert (protocol["noop_max"], protocol["full_action_space"]) == (10, True)


def test_frames_are_greyed_as_ale_greys(tmp_path):
    env = gymnasium.make("ALE/Pong-v5", obs_type="rgb")
    found = dataset(tmp_path, "pong-v0", play(env, 12, 1), env, jpeg_encoding=False)
    store = import_dataset(found, tmp_path / "store", Foreign(num_envs=1, num_validation_envs=0), silent)
    grey = play(gymnasium.make("ALE/Pong-v5", obs_type="grayscale"), 12, 1)[0].observations
    expected = average_areas(np.stack(grey)[..., None], 84, 84)[..., 0]
    assert np.abs(rows_of(store)[-1][:, 0].astype(int) - expected).max() <= 1


def test_vectors_of_others(tmp_path):
    env = gymnasium.make("CartPole-v1")
    found = dataset(tmp_path, "cartpole-v0", buffers := play(env, 100, 4), env)
    store = import_dataset(found, tmp_path / "store", Foreign(num_envs=2), silent)
    observation = np.concatenate([np.stack(buffer.observations) for buffer in buffers])
    assert np.array_equal(rows_of(store)[-1], observation[: store.num_rows].astype(np.float32))
    assert store.description["id"] == "CartPole-v1"
    assert store.description["protocol"] == {"name": "gymnasium", "max_episode_steps": 500}


def test_environments_are_of_equal_length():
    cut = spread([3, 10, 1, 7], 4)
    assert [[tuple(span) for span in env] for env in cut] == [
        [(0, 0, 3), (1, 0, 2)],
        [(1, 2, 7)],
        [(1, 7, 10), (2, 0, 1), (3, 0, 1)],
        [(3, 1, 6)],
    ]


@pytest.mark.parametrize(
    ("observations", "actions", "options", "words"),
    [
        (Box(0, 255, (84, 84), np.uint8), Box(-1, 1, (2,)), {}, "action space .*expected Discrete"),
        (Dict(image=Box(0, 255, (84, 84), np.uint8)), Discrete(6), {}, "observation space Dict.*expected vectors"),
        (Box(0, 255, (84, 84, 4), np.uint8), Discrete(6), {}, "single uint8 frames"),
        (Box(0, 1, (84, 84, 3)), Discrete(6), {}, "single uint8 frames"),
        (Box(0, 255, (84, 84), np.uint8), Discrete(6), {}, "--world"),
        (Box(0, 255, (84, 84), np.uint8), Discrete(6), {"world": "pongg"}, "the nearest are pong"),
        (Box(0, 255, (84, 84), np.uint8), Discrete(6), {"world": "pong"}, "--protocol atari100k or machado2018"),
        (
            Box(0, 255, (84, 84), np.uint8),
            Discrete(6),
            {"world": "pong", "protocol": "machado2018"},
            "6 actions, but pong has 18",
        ),
        (Box(0, 255, (84, 84), np.uint8), Discrete(6), {"world": "pong", "color": "rgb"}, "grey frames"),
        (Box(0, 255, (84, 84), np.uint8), Discrete(6), {"num_envs": 0}, "num_envs must be at least 1"),
        (Box(-1, 1, (3,)), Discrete(6), {"world": "CartPole-v1"}, "too few steps"),
    ],
)
def test_what_cannot_be_imported(tmp_path, observations, actions, options, words):
    found = dataset(tmp_path, "wrong-v0", [], observation_space=observations, action_space=actions)
    with pytest.raises(UserError, match=words):
        import_dataset(found, tmp_path / "store", Foreign(**options), silent)
    assert not (tmp_path / "store").exists()


def test_datasets_that_are_not_there_or_damaged(tmp_path):
    with pytest.raises(UserError, match="which has none; dreamcade downloads nothing"):
        open_dataset("random-v0", tmp_path)
    store = record(tmp_path / "store", 31, 31)
    export_store(store, "random-v0", tmp_path, silent)
    with pytest.raises(UserError, match="which has random-v0; dreamcade"):
        open_dataset("random-v1", tmp_path)
    found = open_dataset("random-v0", tmp_path)
    with pytest.raises(UserError, match="imported unchanged: leave out --size"):
        import_dataset(found, tmp_path / "again", Foreign(color="rgb"), silent)
    with pytest.raises(UserError, match="expected a new or an empty folder"):
        import_dataset(found, store.path, Foreign(), silent)
    found.storage.update_metadata({"total_episodes": 3})
    with pytest.raises(UserError, match="lacks episodes"):
        import_dataset(open_dataset("random-v0", tmp_path), tmp_path / "again", Foreign(), silent)
    data = tmp_path / "random-v0" / "data" / "main_data.hdf5"
    data.write_bytes(data.read_bytes()[:5000])
    with pytest.raises(UserError, match="cannot be read"):
        import_dataset(open_dataset("random-v0", tmp_path), tmp_path / "again", Foreign(), silent)
