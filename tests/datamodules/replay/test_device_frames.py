"""Frames that are gathered on a device: bit for bit those of the store, whatever happened to it meanwhile."""

import numpy as np
import pytest
import torch

from datamodules.replay.store import ReplayStore

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]


def fill(store: ReplayStore, rows: int, source: np.random.Generator) -> None:
    for _ in range(rows):
        frames = source.integers(0, 256, (store.num_envs, 1, 4, 3), dtype=np.uint8)
        nothing = np.zeros(store.num_envs, bool)
        opens = np.full(store.num_envs, source.random() < 0.1 or store.rows == 0)
        store.append(frames, np.zeros(store.num_envs, np.int64), np.zeros(store.num_envs), nothing, opens, nothing)


@pytest.mark.parametrize("device", DEVICES)
def test_they_are_those_of_the_store_after_appends_a_closed_ring_and_a_cut(tmp_path, device):
    store = ReplayStore.create(tmp_path / "store", observation_shape=(1, 4, 3), num_actions=2, num_envs=3, capacity=20)
    beside = ReplayStore.open(_filled(store), verify=False)
    store.keep_frames_on(torch.device(device))

    def same() -> None:
        drawn = [each.sample(np.random.default_rng(1), 32, 5, frame_stack=3) for each in (store, beside)]
        assert drawn[0].observation.device.type == device
        assert torch.equal(drawn[0].observation.cpu(), drawn[1].observation)

    source = np.random.default_rng(0)
    for rows in (1, 7, 30, 0, 3):  # within the ring, around its end, more than all of it
        fill(store, rows, source)
        same()
    store.truncate(store.rows - 5)
    fill(store, 5, source)  # as many rows as before, other frames
    same()


def _filled(store: ReplayStore):
    fill(store, 6, np.random.default_rng(2))
    return store.path
