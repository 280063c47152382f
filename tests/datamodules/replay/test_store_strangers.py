"""Stores from strangers, whose checksums are right: whoever makes a file makes its checksum as well."""

import json

import numpy as np
import pytest

from datamodules.control import ControlReplay
from datamodules.environments.control import ControlEnvironments
from datamodules.replay import format as replay_format
from datamodules.replay.format import Layout, row_checksum
from datamodules.replay.store import ReplayStore
from modules.errors import UserError


@pytest.fixture
def store(tmp_path):
    """The folder of a store with 5 rows in each of 2 environments."""
    store = ReplayStore.create(tmp_path / "store", observation_shape=(3,), num_actions=2, num_envs=2, capacity=10)
    flags = np.zeros(2, bool)
    for _ in range(5):
        store.append(np.zeros((2, 3), np.uint8), np.zeros(2, int), np.zeros(2), flags, flags, flags)
    store.close()
    return tmp_path / "store"


def rewrite(store, **changes):
    content = json.loads((store / "meta.json").read_text()) | changes
    del content["checksum"]
    (store / "meta.json").write_text(json.dumps({**content, "checksum": replay_format._json_checksum(content)}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"extras": {"trap": ["O", []]}}, "trap is O"),
        ({"extras": {"trap": ["float32", [-1]]}}, "trap is float32"),
        ({"observation_shape": [-3]}, "whole numbers of at least 1"),
        ({"observation_shape": [10**30]}, "cut short"),
        ({"observation_shape": 3}, "lacks the fields of a store"),
        ({"num_actions": 10**9}, "at most 65536 actions"),
        ({"num_envs": float("nan")}, "environments of at least 1"),
        ({"num_validation_envs": 0.5}, "environments of at least 1"),
        ({"description": []}, "lacks the fields of a store"),
        ({"more": 1}, "lacks the fields of a store"),
    ],
)
def test_a_layout_that_no_store_has(store, changes, words):
    rewrite(store, **changes)
    with pytest.raises(UserError, match=words) as raised:
        ReplayStore.open(store)
    assert "\n" not in str(raised.value)


def test_nested_json(store):
    (store / "meta.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="does not match its checksum"):
        ReplayStore.open(store)


def test_an_action_that_does_not_exist(store):
    layout = Layout.read(store)
    records = np.memmap(store / "rows.bin", layout.record, "r+", shape=(2, 11))
    records["action"][1, 3] = 2
    observation = np.zeros(3, np.uint8)
    records["checksum"][1, 3] = row_checksum(observation, records[1, 3:4].view(np.uint8)[:-4], 1, 3)
    with pytest.raises(UserError, match="row 3 of environment 1 has no action below 2"):
        ReplayStore.open(store)


@pytest.mark.parametrize("word", [11, 2**32 - 1])
def test_more_rows_than_there_is_room_for(store, word):
    head = np.memmap(store / "head.bin", "<u8", "r+", shape=(2,))
    head[0] = replay_format._to_word(word, replay_format.ROWS)
    with pytest.raises(UserError, match=r"head.bin says that \d+ of 5 rows"):
        ReplayStore.open(store)


@pytest.mark.parametrize("name", ["meta.json", "rows.bin", "observation.bin", "head.bin"])
def test_a_link_is_not_followed(store, tmp_path, name):
    (store / name).rename(tmp_path / "elsewhere")
    (store / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link"):
        ReplayStore.open(store)


def test_a_store_alone_imports_no_package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "stranger.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    description = ControlEnvironments("CartPole-v1", 1).description | {"id": "stranger:CartPole-v1"}
    data = ControlReplay(path=tmp_path)
    data.described = description
    with pytest.raises(UserError, match=r"stranger:CartPole-v1 imports a package: set data\.id"):
        data.evaluation_environment(1, 0)
    assert not (tmp_path / "imported").exists()
