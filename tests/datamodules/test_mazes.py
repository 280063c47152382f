import numpy as np
import pytest
import torch

from datamodules.collector import Collector
from datamodules.mazes import MazeReplay
from datamodules.settings import Envs, Sampling, Storage
from modules.errors import UserError
from modules.world_model import Spec
from pipelines.acting.actors import RandomActor


@pytest.fixture
def data(tmp_path):
    """Four environments that are played at random, one of them held out."""
    data = MazeReplay(max_steps=7, envs=Envs(3, 1), storage=Storage(300))
    data.store = data.create(tmp_path / "mazes")
    yield data
    data.teardown("fit")


def test_a_batch_is_the_newest_transition_of_every_environment(data):
    assert data.spec == Spec((1,), 1, 4)
    collector = Collector(data.environment, data.store)
    actor = RandomActor(4, np.random.default_rng(0))
    collector.step(actor)
    batches = iter(data.train_dataloader())
    for row in range(20):
        before = collector.playing.observation
        collector.step(actor)
        batch = next(batches)["real"]
        assert batch.shape == (3, 2)
        assert torch.equal(batch.observation[:, 1], torch.from_numpy(before[:3]))
        assert (batch.observation[:, 1, 0] // 54).tolist() == [0, 1, 2]
        # Seven steps, then a row that only opens an episode.
        assert batch.has_successor().all() == (row % 8 < 7)
    assert data.sample().shape == (30, 2)
    assert (data.validation_windows(2, 5).observation // 54 == 3).all()


def test_stores_are_read_at_random(data):
    collector = Collector(data.environment, data.store)
    for _ in range(30):
        collector.step(RandomActor(4, np.random.default_rng(0)))
    data.store.close()
    read = MazeReplay(maze=None, path=data.store.path, sampling=Sampling(5, sequence_length=2))
    read.setup("fit")
    assert read.name == "dyna maze"
    assert next(iter(read.train_dataloader()))["real"].shape == (5, 2)
    assert read.evaluation_environment(2, 0).max_steps == 7
    with pytest.raises(UserError, match="max_steps 7"):
        MazeReplay(maze="dyna", path=data.store.path, max_steps=8).setup("fit")
    data.store = read.store


def test_a_restored_maze_has_changed_if_it_had(data):
    data.collector.playing.environment.clock[:] = [5, 6, 7, 8]
    state = data.state_dict()
    data.environment.clock[:] = 0
    del data.__dict__["collector"]
    data.load_state_dict(state)
    assert data.collector.playing.environment.clock.tolist() == [5, 6, 7, 8]


def test_mistakes_are_told():
    with pytest.raises(UserError, match=r"data\.maze or data\.path"):
        MazeReplay(maze=None)
    with pytest.raises(UserError, match="nearest is shortcut"):
        MazeReplay(maze="short")
