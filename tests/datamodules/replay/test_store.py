import shutil

import numpy as np
import pytest
import torch

from datamodules.replay.store import ReplayStore
from modules.batch import stack
from modules.errors import UserError

SHAPE = (1, 6, 5)


def make(path, num_envs=3, capacity=50, **options) -> ReplayStore:
    return ReplayStore.create(
        path, observation_shape=SHAPE, num_actions=4, num_envs=num_envs, capacity=capacity, **options
    )


def content(env, row, shape=SHAPE) -> np.ndarray:
    """Frames (..., *shape) whose every byte depends on environment and row."""
    env, row = np.broadcast_arrays(env, row)
    mixed = (env * 7919 + row * 104729)[..., None] * (2 * np.arange(np.prod(shape)) + 1)
    return (mixed >> 5).astype(np.uint8).reshape(*row.shape, *shape)


def fill(store, num_rows, episode=7, cut=()) -> None:
    """Append rows; episodes of environment l begin at (row + l) % episode is 0, and at a cut without an end before."""
    envs = np.arange(store.num_envs)
    for row in range(store.rows, store.rows + num_rows):
        place = (row + envs) % episode
        is_last = (place == episode - 1) & (row + 1 not in cut)
        is_first = (place == 0) | (row == 0) | (row in cut)
        store.append(content(envs, row), (row + envs) % 4, row + envs / 8, is_last & (row % 2 == 0), is_first, is_last)


def check(batch, env, start) -> None:
    """Assert that the windows of a batch are exactly the rows that `fill` wrote, cuts aside."""
    env, row = np.asarray(env)[:, None], np.asarray(start)[:, None] + np.arange(batch.shape[1])
    assert np.array_equal(batch.observation[:, :, -1:].numpy(), content(env, row))
    assert np.array_equal(batch.action.numpy(), (row + env) % 4)
    assert np.array_equal(batch.reward.numpy(), (row + env / 8).astype(np.float32))


def test_round_trip(tmp_path):
    extras = {"log_prob": ("float32", ()), "search_policy": ("float32", (4,))}
    store = make(tmp_path / "a" / "store", extras=extras, description={"game": "pong"})
    generator = np.random.default_rng(0)
    kept = []
    for row in range(20):
        policy = generator.random((3, 4)).astype(np.float32)
        flags = [np.array([row % 5 == 4, False, True]), np.full(3, row % 5 == 0), np.full(3, row % 5 == 4)]
        observation = generator.integers(0, 256, (3, *SHAPE)).astype(np.uint8)
        kept.append((observation, np.arange(3), np.arange(3) - 1.5, *flags, policy))
        store.append(*kept[-1][:6], {"log_prob": policy[:, 0], "search_policy": policy})
    store.flush()
    store.close()
    store = ReplayStore.open(tmp_path / "a" / "store")
    assert (store.rows, store.oldest, store.num_rows) == (20, 0, 60)
    assert (store.observation_shape, store.num_actions, store.description) == (SHAPE, 4, {"game": "pong"})
    batch = store.gather(np.arange(3), np.zeros(3, int), 20)
    observation, action, reward, terminated, is_first, is_last, policy = (
        np.stack(c, 1) for c in zip(*kept, strict=True)
    )
    assert np.array_equal(batch.observation, observation)
    assert np.array_equal(batch.action, action)
    assert batch.action.dtype == torch.int64
    assert np.array_equal(batch.reward, reward.astype(np.float32))
    assert np.array_equal(batch.continuation, 1 - terminated.astype(np.float32))
    assert batch.continuation.dtype == torch.float32
    assert np.array_equal(batch.is_first, is_first)
    assert np.array_equal(batch.is_last, is_last)
    assert np.array_equal(batch.extras["search_policy"], policy)
    assert np.array_equal(batch.extras["log_prob"], policy[..., 0])
    assert batch.state is None


def test_vectors(tmp_path):
    store = ReplayStore.create(
        tmp_path / "s", observation_shape=(3,), observation_dtype=np.float32, num_actions=2, num_envs=2, capacity=9
    )
    vectors = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    for vector in vectors:
        store.append(vector, [0, 1], [0, 0], [False] * 2, [False] * 2, [False] * 2)
    store.close()
    store = ReplayStore.open(tmp_path / "s")
    batch = store.gather([0, 1], [1, 1], 3, frame_stack=2)
    assert batch.observation.shape == (2, 3, 6)
    assert np.array_equal(batch.observation[1, 2], vectors[[2, 3], 1].reshape(-1))


def test_ring_wraps_and_windows_stay_clear_of_the_write_head(tmp_path):
    store = make(tmp_path / "s", capacity=20)
    for rows in (20, 1, 7, 33, 100):
        fill(store, rows)
        head = store.rows
        assert store.oldest == max(0, head - 20)
        assert store.num_rows == 3 * 20
        env, start = store.windows(6)
        assert set(start) == set(range(store.oldest, head - 5))
        assert len(env) == 3 * 15
        check(store.gather(env, start, 6), env, start)
        with pytest.raises(UserError, match="not all in"):
            store.gather([0], [store.oldest - 1], 6)
        with pytest.raises(UserError, match="not all in"):
            store.gather([0], [head - 5], 6)
    assert store.sample(np.random.default_rng(0), 4, 20).shape == (4, 20)


@pytest.mark.parametrize("num_frames", [2, 4, 9])
def test_stacks_agree_with_the_batch_module(tmp_path, num_frames):
    store = make(tmp_path / "s", capacity=40)
    fill(store, 75, cut=(50, 60))
    oldest, length = store.oldest, 5
    whole = store.gather(np.arange(3), np.full(3, oldest), 40)
    expected = stack(whole.observation, whole.is_first, num_frames)
    env, start = store.windows(length)
    batch = store.gather(env, start, length, num_frames)
    assert batch.observation.shape == (len(env), length, num_frames, 6, 5)
    for window, (of, first) in enumerate(zip(env, start - oldest, strict=True)):
        assert torch.equal(batch.observation[window], expected[of, first : first + length])


def test_stacks_agree_when_a_reader_learns_of_rows_bit_by_bit(tmp_path):
    store = make(tmp_path / "s", capacity=40)
    reader = ReplayStore.open(tmp_path / "s")
    for rows in (3, 1, 30, 2, 17, 60, 1):
        fill(store, rows)
        fresh = ReplayStore.open(tmp_path / "s")
        env, start = reader.windows(2)
        assert torch.equal(reader.gather(env, start, 2, 4).observation, fresh.gather(env, start, 2, 4).observation)
        assert np.array_equal(reader.windows(3, cross_episodes=False), fresh.windows(3, cross_episodes=False))


def test_windows_cross_episodes_or_not(tmp_path):
    store = make(tmp_path / "s", capacity=60)
    fill(store, 90, cut=(52, 70))
    rows = store.gather(np.arange(3), np.full(3, store.oldest), 60)
    for length in (1, 2, 7):
        env, start = store.windows(length, cross_episodes=False)
        inside = {
            (of, store.oldest + first)
            for of in range(3)
            for first in range(60 - length + 1)
            if not rows.is_first[of, first + 1 : first + length].any()
        }
        assert set(zip(env.tolist(), start.tolist(), strict=True)) == inside
        generator = np.random.default_rng(0)
        inner = store.sample(generator, 200, length, cross_episodes=False)
        assert not inner.is_first[:, 1:].any()
        assert inner.has_successor().all()
    crossing = store.sample(np.random.default_rng(0), 200, 7)
    assert crossing.is_first[:, 1:].any()
    with pytest.raises(UserError, match="a sequence of 8 is longer than any episode"):
        store.sample(generator, 1, 8, cross_episodes=False)


def test_a_sequence_longer_than_the_store(tmp_path):
    store = make(tmp_path / "s")
    fill(store, 10)
    with pytest.raises(UserError, match="a sequence of 64 is longer than the store's 10 rows"):
        store.sample(np.random.default_rng(0), 1, 64)
    assert len(store.windows(64)[0]) == 0


def test_validation_environments(tmp_path):
    store = make(tmp_path / "s", num_envs=4, num_validation_envs=1)
    fill(store, 30)
    envs_of = {content(env, row).tobytes(): env for env in range(4) for row in range(30)}
    for envs, expected in (("training", {0, 1, 2}), ("validation", {3}), (np.array([1, 3]), {1, 3})):
        frames = store.sample(np.random.default_rng(0), 300, 2, envs=envs).observation.flatten(0, 1)
        assert {envs_of[frame.numpy().tobytes()] for frame in frames} == expected
    with pytest.raises(UserError, match="has no validation environments"):
        make(tmp_path / "t").select("validation")


@pytest.mark.parametrize("cross_episodes", [True, False])
@pytest.mark.parametrize("length", [3, 7])
def test_sampling_is_uniform(tmp_path, cross_episodes, length):
    store = make(tmp_path / "s", capacity=40)
    fill(store, 55)
    env, start = store.windows(length, cross_episodes=cross_episodes)
    index = {float(s + of / 8): i for i, (of, s) in enumerate(zip(env, start, strict=True))}
    generator = np.random.default_rng(0)
    counts = np.zeros(len(env))
    for _ in range(100):
        batch = store.sample(generator, 200, length, cross_episodes=cross_episodes)
        np.add.at(counts, [index[key] for key in batch.reward[:, 0].tolist()], 1)
    expected = counts.sum() / len(counts)
    chi_square, freedom = ((counts - expected) ** 2 / expected).sum(), len(counts) - 1
    assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)


def test_recent_rows_alone(tmp_path):
    store = make(tmp_path / "s")
    fill(store, 70)
    reward = store.sample(np.random.default_rng(0), 500, 2, recent=10).reward
    assert reward.min() >= 60
    with pytest.raises(UserError, match="the store's 10 rows"):
        store.sample(np.random.default_rng(0), 1, 11, recent=10)


def test_truncate_then_append(tmp_path):
    store = make(tmp_path / "s", capacity=30)
    fill(store, 70)
    reader = ReplayStore.open(tmp_path / "s")
    reader.windows(3)
    for rows in (39, 71):
        with pytest.raises(UserError, match=f"cannot be cut back to row {rows}: it holds rows 40 to 70"):
            store.truncate(rows)
    store.truncate(55)
    assert (store.oldest, store.rows, reader.rows) == (40, 55, 55)
    store.close()
    store = ReplayStore.open(tmp_path / "s", writable=True)
    assert (store.oldest, store.rows) == (40, 55)
    fill(store, 25, episode=5, cut=(55,))
    assert (store.oldest, store.rows) == (50, 80)
    store.close()
    for opened in (reader, ReplayStore.open(tmp_path / "s")):
        env, start = opened.windows(4)
        batch = opened.gather(env, start, 4)
        check(batch, env, start)
        assert not opened.sample(np.random.default_rng(0), 99, 5, cross_episodes=False).is_first[:, 1:].any()
        assert opened.gather([0], [55], 1).is_first.all()


def refused(path, pattern, **options) -> None:
    with pytest.raises(UserError, match=pattern) as raised:
        ReplayStore.open(path, **options)
    assert "\n" not in str(raised.value)


def test_not_a_store_or_another(tmp_path):
    refused(tmp_path / "none", "is not a replay store")
    refused(tmp_path, "is not a replay store")
    store = make(tmp_path / "s", description={"game": "pong", "protocol": "atari100k", "shape": (1, 2)})
    ReplayStore.open(tmp_path / "s", expect={"game": "pong", "protocol": "atari100k", "shape": (1, 2)})
    refused(tmp_path / "s", "holds game 'pong', expected 'breakout'", expect={"game": "breakout"})
    refused(tmp_path / "s", "holds protocol 'atari100k', expected 'machado2018'", expect={"protocol": "machado2018"})
    refused(tmp_path / "s", "holds colour None, expected True", expect={"colour": True})
    make(tmp_path / "t", description={"protocol": {"name": "atari100k", "frame_skip": 4}})
    expected = {"frame_skip": 5, "name": "atari100k"}
    refused(tmp_path / "t", r"holds protocol\.frame_skip 4, expected 5", expect={"protocol": expected})
    with pytest.raises(UserError, match="exists already"):
        make(tmp_path / "s")
    assert store.rows == 0


def test_another_format_version(tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.replay.format.FORMAT_VERSION", 3)
    make(tmp_path / "s")
    monkeypatch.undo()
    refused(tmp_path / "s", "has format version 3, expected 2")


@pytest.mark.parametrize("name", ["observation.bin", "rows.bin", "head.bin"])
def test_cut_short(tmp_path, name):
    fill(make(tmp_path / "s"), 10)
    with (tmp_path / "s" / name).open("r+b") as file:
        file.truncate(file.seek(0, 2) - 1)
    refused(tmp_path / "s", f"was cut short: {name} has")
    (tmp_path / "s" / name).unlink()
    refused(tmp_path / "s", f"was cut short: {name} has 0 bytes")


def flip(path, offset, mask) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


@pytest.mark.parametrize("name", ["meta.json", "head.bin", "rows.bin", "observation.bin"])
def test_a_flipped_byte(tmp_path, name):
    store = make(tmp_path / "s", num_envs=2, capacity=8, description={"game": "pong"})
    fill(store, 13)
    store.close()
    path = tmp_path / "s" / name
    size = path.stat().st_size
    pattern = {"meta.json": "damaged", "head.bin": "damaged"}.get(
        name, r"damaged: row \d+ of environment [01] does not match"
    )
    unused = range(0)
    if name in ("rows.bin", "observation.bin"):
        width = size // 18
        unused = [byte for slot in (4, 13) for byte in range(slot * width, (slot + 1) * width)]
    for offset in sorted(set(range(size)) - set(unused)):
        mask = 1 << offset % 8
        flip(path, offset, mask)
        refused(tmp_path / "s", pattern)
        flip(path, offset, mask)
    for offset in unused:
        flip(path, offset, 255)
    assert ReplayStore.open(tmp_path / "s").rows == 13


def test_a_damaged_row_is_named(tmp_path):
    store = make(tmp_path / "s", capacity=8)
    fill(store, 13)
    store._observations[1, 11 % 9, 0, 3, 2] ^= 16
    refused(tmp_path / "s", "row 11 of environment 1 does not match its checksum")
    assert ReplayStore.open(tmp_path / "s", verify=False).rows == 13


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    with pytest.raises(
        UserError, match=r"needs [\d.]+ GiB for 1000000000000 rows of 3 environments, [\d.]+ GiB are free"
    ):
        make(tmp_path / "a" / "s", capacity=10**12)
    assert list(tmp_path.iterdir()) == []

    # Room that is gone by the time it is asked for.
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1 << 62))
    with pytest.raises(UserError, match=r"could not be made with [\d.]+ GiB"):
        make(tmp_path / "a" / "s", capacity=10**12)
    assert list(tmp_path.iterdir()) == []


def test_a_copied_folder_is_an_equal_store(tmp_path):
    store = make(tmp_path / "s", description={"game": "pong"})
    fill(store, 77)
    shutil.copytree(tmp_path / "s", tmp_path / "t")
    copy = ReplayStore.open(tmp_path / "t", writable=True, expect={"game": "pong"})
    batches = [each.sample(np.random.default_rng(1), 32, 4, frame_stack=3) for each in (store, copy)]
    assert torch.equal(batches[0].observation, batches[1].observation)
    assert torch.equal(batches[0].reward, batches[1].reward)
    fill(copy, 1)
    assert (store.rows, copy.rows) == (77, 78)


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"capacity": 0}, "expected a capacity and environments of at least 1"),
        ({"num_validation_envs": 3}, "fewer validation environments than environments"),
        ({"observation_dtype": np.float64}, "expected uint8 or float32"),
        ({"extras": {"reward": ("float32", ())}}, "columns of every store"),
    ],
)
def test_mistakes_in_create(tmp_path, options, pattern):
    with pytest.raises(UserError, match=pattern):
        make(tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()
