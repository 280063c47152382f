"""What other processes do to a store: die while they write it, read it while it is written, want to write too."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from datamodules.replay.store import ReplayStore
from modules.errors import UserError
from tests.datamodules.replay.test_store import check, fill, make

ROOT = Path(__file__).parents[3]


CHILD = """
import sys
from datamodules.replay.store import ReplayStore
from tests.datamodules.replay.test_store import fill
store = ReplayStore.open(sys.argv[1], writable=True)
print("ready", flush=True)
while True:
    fill(store, 1)
    print(store.rows, flush=True)
"""


def test_kill_while_appending(tmp_path):
    path = tmp_path / "s"
    make(path, num_envs=4, capacity=60).close()
    generator = np.random.default_rng(0)
    reached = 0
    for kill in range(5):
        child = subprocess.Popen([sys.executable, "-c", CHILD, path], stdout=subprocess.PIPE, cwd=ROOT, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        while kill == 4 and ReplayStore.open(path, verify=False).rows < 200:
            time.sleep(0.001)
            child.stdout.read(64)
        time.sleep(generator.random() * 0.02)
        child.kill()
        reported = [int(line) for line in child.stdout.read().split("\n")[:-1] if line]
        child.wait()
        store = ReplayStore.open(path, writable=True)
        rows = store.rows
        reached = max([reached, *reported[-1:]])
        assert reached <= rows <= reached + 1
        assert store.oldest <= max(0, rows + 1 - 60)
        if rows:
            envs = np.arange(4)
            check(store.gather(envs, np.full(4, store.oldest), rows - store.oldest), envs, np.full(4, store.oldest))
        reached = rows
        store.close()
    assert reached > 60


@pytest.mark.parametrize("before", [10, 75])
@pytest.mark.parametrize("stage", ["part of the frame", "frames", "record", "high"])
def test_kill_at_every_stage_of_an_append(tmp_path, before, stage):
    store = make(tmp_path / "s", capacity=30)
    fill(store, before)
    oldest, slot = store.oldest, before % 31
    if stage == "part of the frame":
        store._observations[0, slot].reshape(-1)[:7] = 1
    else:
        store._observations[:, slot] = 1
    if stage in ("record", "high"):
        store._records[:, slot] = np.frombuffer(b"\7" * store._records.itemsize, store._records.dtype)[0]
    if stage == "high":
        store._head.raise_high(before + 1)
        oldest = max(0, before + 1 - 30)
    store.close()
    store = ReplayStore.open(tmp_path / "s", writable=True)
    assert (store.oldest, store.rows) == (oldest, before)
    fill(store, 5)
    store.close()
    store = ReplayStore.open(tmp_path / "s")
    env, start = store.windows(3)
    check(store.gather(env, start, 3), env, start)
    assert store.rows == before + 5


READER = """
import sys
import numpy as np
from datamodules.replay.store import ReplayStore
from tests.datamodules.replay.test_store import check
store = ReplayStore.open(sys.argv[1])
generator = np.random.default_rng(0)
sampled, wraps = 0, set()
print("ready", flush=True)
while store.rows < int(sys.argv[2]):
    cross = bool(generator.integers(2))
    batch = store.sample(generator, 8, 5, frame_stack=1 + 2 * int(generator.integers(2)), cross_episodes=cross)
    start = batch.reward[:, 0].numpy()
    environment = ((start % 1) * 8).astype(int)
    check(batch, environment, start.astype(int))
    assert cross or not batch.is_first[:, 1:].any()
    sampled += 1
    wraps.add(store.rows // 65)
print(sampled, len(wraps))
"""


def test_a_reader_samples_while_the_writer_appends(tmp_path):
    store = make(tmp_path / "s", capacity=64)
    fill(store, 40)
    command = [sys.executable, "-c", READER, tmp_path / "s", "8000"]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True)
    assert reader.stdout is not None
    assert reader.stdout.readline() == "ready\n"
    fill(store, 7960)
    output, errors = reader.communicate(timeout=30)
    assert reader.returncode == 0, errors
    sampled, wraps = map(int, output.split())
    assert sampled > 50
    assert wraps > 10


def test_a_sample_that_was_overwritten_is_drawn_again(tmp_path, monkeypatch):
    writer = make(tmp_path / "s", capacity=30)
    fill(writer, 60)
    reader = ReplayStore.open(tmp_path / "s")
    gather, laps = reader._gather, []

    def lapped(*arguments):
        laps.append(fill(writer, 9 if len(laps) < 3 else 0))
        return gather(*arguments)

    monkeypatch.setattr(reader, "_gather", lapped)
    batch = reader.sample(np.random.default_rng(0), 64, 5)
    assert len(laps) > 3
    key = (batch.reward[:, 0] * 8).long().numpy()
    check(batch, key % 8, key // 8)


def test_one_writer_at_a_time(tmp_path):
    store = make(tmp_path / "s")
    with pytest.raises(UserError, match="being written by another process"):
        ReplayStore.open(tmp_path / "s", writable=True)
    store.close()
    ReplayStore.open(tmp_path / "s", writable=True)
