import numpy as np
import pytest
import torch

from datamodules.atari import AtariReplay
from datamodules.collector import Collector
from datamodules.control import ControlReplay
from datamodules.settings import Envs, Storage
from modules.errors import UserError
from modules.world_model import Spec
from pipelines.acting.actors import RandomActor


def record(data, path, num_rows: int) -> None:
    """Record a store as `dreamcade collect` does."""
    store = data.create(path)
    collector = Collector(data.environment, store)
    actor = RandomActor(store.num_actions, np.random.default_rng(0))
    for _ in range(num_rows):
        collector.step(actor)
    store.close()
    data.environment.close()


@pytest.fixture
def cartpole(tmp_path):
    path = tmp_path / "cartpole"
    record(ControlReplay(id="CartPole-v1", envs=Envs(2, 1), storage=Storage(300), seed=3), path, 150)
    return path


def test_windows_are_what_was_played(cartpole):
    data = ControlReplay(path=cartpole)
    data.setup("fit")
    assert data.name == "CartPole-v1"
    assert data.spec == Spec((4,), 1, 2)
    batch = data.sample()
    assert batch.observation.shape == (256, 2, 4)
    assert batch.observation.dtype == torch.float32
    assert data.validation_windows(10, 5).observation.shape == (5, 10, 4)
    # CartPole's positions are integrated by Euler's method from the velocities before.
    position, velocity = batch.observation[..., [0, 2]], batch.observation[..., [1, 3]]
    has_successor = batch.has_successor()
    moved = position[:, 0] + 0.02 * velocity[:, 0]
    assert has_successor.float().mean() > 0.8
    assert torch.allclose(moved[has_successor[:, 0]], position[:, 1][has_successor[:, 0]], atol=1e-6)
    assert (batch.reward == (~batch.is_last).float()).all()
    assert (batch.continuation == 0).any()


def test_the_same_seed_plays_the_same(cartpole, tmp_path):
    options = {"id": "CartPole-v1", "envs": Envs(2, 1), "storage": Storage(300)}
    batches = []
    for seed in (3, 4):
        record(ControlReplay(**options, seed=seed), tmp_path / str(seed), 150)
        for path in (tmp_path / str(seed), cartpole):
            data = ControlReplay(path=path)
            data.setup("fit")
            batches.append(data.store.gather(np.arange(3), np.zeros(3, int), 150).observation)
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[2], batches[3])


def test_evaluation_plays_the_world_of_the_store(cartpole):
    data = ControlReplay(path=cartpole)
    data.setup("fit")
    environment = data.evaluation_environment(5, seed=1)
    assert environment.reset().shape == (5, 4)
    assert environment.description == data.store.description | {"variant": "evaluation"}


@pytest.mark.parametrize("protocol", ["atari100k", "machado2018"])
def test_evaluation_of_atari_plays_the_game_and_protocol_of_the_store(tmp_path, protocol):
    options = {"protocol": protocol, "size": (42, 40), "color": "rgb", "envs": Envs(1)}
    record(AtariReplay(game="Ms. Pac-Man", storage=Storage(20), **options), tmp_path / "s", 20)
    data = AtariReplay(path=tmp_path / "s")
    data.setup("fit")
    assert data.name == "ms_pacman"
    environment = data.evaluation_environment(2, seed=1)
    assert environment.reset().shape == (2, 3, 42, 40)
    assert environment.description == data.store.description | {"variant": "evaluation"}
    assert data.sample().observation.shape == (16, 16, 12, 42, 40)
    environment.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ["data.id", "data.path"]),
        ({"id": "Cartpole-v1"}, ["Cartpole-v1", "CartPole-v1"]),
    ],
    ids=str,
)
def test_mistakes_get_one_line(options, words):
    with pytest.raises(UserError) as raised:
        ControlReplay(**options)
    assert "\n" not in str(raised.value)
    for word in words:
        assert word in str(raised.value)


def test_a_store_of_another_world(cartpole):
    with pytest.raises(UserError, match="holds id 'CartPole-v1', expected 'Acrobot-v1'"):
        ControlReplay(id="Acrobot-v1", path=cartpole).setup("fit")
    with pytest.raises(UserError, match="holds environment 'control', expected 'atari'"):
        AtariReplay(path=cartpole).setup("fit")
    ControlReplay(id="CartPole-v1", path=cartpole).setup("fit")
