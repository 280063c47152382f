"""What a checkpoint keeps for dreams to start from."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datamodules.atari import AtariReplay
from datamodules.replay.store import ReplayStore
from modules.errors import UserError
from modules.world_model import Spec
from pipelines.callbacks.dreaming.dream_starts import DreamStarts, unpack
from pipelines.dreams.environment import DreamVectorEnv
from pipelines.runs import checkpoints

LAST = Path("checkpoints") / "last.ckpt"


@pytest.fixture
def data(pong):
    """The datamodule of a run on the store."""
    data = AtariReplay(path=pong)
    data.setup("fit")
    yield data
    data.teardown("fit")


def save(callback: DreamStarts, data) -> dict:
    checkpoint: dict = {}
    trainer = SimpleNamespace(datamodule=data)
    if data is not None:
        callback.on_train_batch_end(trainer, None)
    callback.on_save_checkpoint(trainer, None, checkpoint)
    return checkpoint


def test_a_run_keeps_the_episode_starts_of_its_training_environments(trained, pong):
    checkpoint = checkpoints.read(trained / LAST)
    store = ReplayStore.open(pong)
    env, start = store.episode_starts(4)
    assert 0 < len(env) <= 16, "more than are kept"
    expected = store.gather(env, start, 4, frame_stack=4)
    assert expected.is_first[:, 0].all()
    episode_starts = checkpoint["dream_starts"]
    assert episode_starts["observation"].shape == (len(env), 4, 1, 84, 84)
    batch = unpack(episode_starts, Spec(**checkpoint["spec"]))
    for ours, theirs in zip(batch.tensors(), expected.tensors(), strict=True):
        assert torch.equal(ours, theirs)
    assert checkpoint["world"] == "pong"


def test_they_lie_evenly_spaced_and_draw_no_numbers(data):
    before = data.sampler.generator.bit_generator.state
    env, start = data.store.episode_starts(2)
    kept = save(DreamStarts(num=1, rows=2), data)["dream_starts"]
    assert torch.equal(kept["observation"], data.store.gather(env[:1], start[:1], 2).observation)
    assert data.sampler.generator.bit_generator.state == before


def test_they_are_taken_once_there_are_enough(tmp_path):
    def store(opens: list[bool]) -> ReplayStore:
        store = ReplayStore.create(
            tmp_path / str(len(opens)), observation_shape=(1,), observation_dtype=np.float32, num_actions=2, num_envs=1,
            capacity=100,
        )  # fmt: skip
        for t, first in enumerate(opens):
            zero = np.zeros(1)
            store.append(np.full((1, 1), t, np.float32), zero, zero, zero, np.array([first]), zero)
        return store

    def first_rows(opens: list[bool]) -> list[int] | None:
        kept = save(callback, SimpleNamespace(store=store(opens))).get("dream_starts")
        return None if kept is None else kept["observation"][:, 0, 0].int().tolist()

    callback = DreamStarts(num=2, rows=2)
    assert save(callback, None) == {}
    assert first_rows([True]) is None, "no window of two rows"
    assert first_rows([True, False, False]) == [0]
    assert first_rows([False, False, False, False, False, False, False]) == [0], "the ring has overwritten it since"
    assert first_rows([True, False, True, False]) == [0, 2]
    assert first_rows([False, True, False, True, False]) == [0, 2], "taken again"
    resumed = DreamStarts(num=2, rows=2)
    resumed.on_load_checkpoint(None, None, {"dream_starts": callback.kept})
    callback = resumed
    assert first_rows([False, True, False, True, False, False]) == [0, 2], "another run goes on with others"


def test_bad_arguments():
    with pytest.raises(UserError, match="at least 1"):
        DreamStarts(num=0)


def test_a_debug_run_of_any_experiment_opens_as_a_dream(run, tmp_path):
    """Its small store has overwritten every episode's first row when the first checkpoint is written."""
    arguments = ["--config", "configs/experiment/unet.yaml", "--config", "configs/debug.yaml"]
    assert run("fit", *arguments, "--trainer.default_root_dir", tmp_path / "run").code == 0
    dreams = DreamVectorEnv(checkpoint=tmp_path / "run" / LAST)
    assert dreams.reset(seed=0)[0].shape == (1, 4, 84, 84)
