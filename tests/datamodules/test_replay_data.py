"""What all datamodules of replayed experience share, on DotWorld."""

import pickle
from dataclasses import fields

import lightning
import numpy as np
import pytest
import torch

from datamodules.replay.priorities import Prioritised
from datamodules.replay.store import ReplayStore
from datamodules.replay_data import ReplayData
from datamodules.settings import Envs, ModelSampling, Sampling, Storage
from modules.errors import UserError
from pipelines.acting.actors import RandomActor
from pipelines.callbacks.measuring.prediction_report import PredictionReport
from tests.datamodules.replay.test_store import check, fill, make
from tests.fakes import DotWorld

DEFAULTS = {"training": 3, "batch_size": 6, "sequence_length": 4, "capacity": 300, "validation_batches": 2}


class DotReplay(ReplayData):
    """Takes the fields of `Envs`, `Sampling` and `Storage` side by side."""

    name = "dot"

    def __init__(self, frame_stack=1, path=None, **options) -> None:
        options = DEFAULTS | options
        groups = [
            group(**{field.name: options.pop(field.name) for field in fields(group) if field.name in options})
            for group in (Envs, Sampling, Storage)
        ]
        assert not options, options
        super().__init__(frame_stack, *groups, path, seed=0)

    def expected(self):
        return {"game": "dot"}

    def training_environment(self, num_envs, seed):
        return DotWorld(num_envs, limit=12, seed=seed)

    def evaluation_environment(self, num_envs, seed):
        return DotWorld(num_envs, limit=99, seed=seed)


class Counting(RandomActor):
    """Leaves the number of the row and of the environment beside its actions."""

    rows = 0

    def act(self, moment):
        actions, _ = super().act(moment)
        self.rows += 1
        row = np.full(len(actions), self.rows - 1, np.float32)
        return actions, {"log_prob": row, "value": np.arange(len(actions), dtype=np.float32)}


@pytest.fixture
def begin(tmp_path):
    """Make a datamodule with a store of its own, and play so many rows."""

    def begin(num_rows: int, **options) -> DotReplay:
        data = DotReplay(**options)
        data.trainer = lightning.Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False)
        data.setup("fit")
        actor = Counting(DotWorld.num_actions, np.random.default_rng(0))
        for _ in range(num_rows):
            data.collector.step(actor)
        return data

    return begin


# Which rows.


def test_recent_rows_alone(begin):
    data = begin(60, recent=20, extras=("log_prob",), validation=1)
    rows = data.sample(500).extras["log_prob"]
    assert set(rows[:, 0].tolist()) == set(range(40, 57))
    assert set(data.sample(500, recent=4).extras["log_prob"][:, 0].tolist()) == {56}
    assert set(data.sample(2000, recent=0).extras["log_prob"][:, 0].tolist()) == set(range(57))
    assert data.sample(500, envs="validation").extras["log_prob"].min() == 0


def test_the_newest_rows_of_every_environment_are_an_on_policy_batch(begin):
    data = begin(9, recent=4, extras=("log_prob", "value"))
    for _ in range(5):
        batch = data.sample()
        assert (batch.extras["log_prob"] == torch.arange(5, 9)).all()
        assert sorted(batch.extras["value"][:, 0].tolist()) == [0, 0, 1, 1, 2, 2]
    envs = {tuple(data.sample(2).extras["value"][:, 0].tolist()) for _ in range(50)}
    assert envs == {(a, b) for a in range(3) for b in range(3) if a != b}


def test_extra_columns_come_back(begin, tmp_path):
    begin(12, extras=("value",)).teardown("fit")
    store = tmp_path / "replay" / "rank0"
    data = DotReplay(path=store, extras=("value",))
    data.setup("fit")
    assert data.sample().extras.keys() == {"value"}
    assert data.sample().extras["value"].dtype == torch.float32
    with pytest.raises(UserError, match="no column log_prob, its extra columns are: value") as raised:
        DotReplay(path=store, extras=("value", "log_prob")).setup("fit")
    assert "\n" not in str(raised.value)


def test_episode_starts_begin_with_an_episode(begin):
    data = begin(80, frame_stack=4, extras=("log_prob", "value"))
    env, start = data.store.episode_starts(5)
    assert len(env) > 10
    batch = data.episode_starts(10, 5)
    assert batch.shape == (10, 5)
    assert batch.observation.shape == (10, 5, 4, 12, 12)
    assert batch.is_first[:, 0].all()
    every = data.episode_starts(1000, 5).extras
    found = zip(every["value"][:, 0].tolist(), every["log_prob"][:, 0].tolist(), strict=True)
    assert sorted(found) == sorted(zip(env.tolist(), start.tolist(), strict=True))
    assert data.episode_starts(10, 81) is None
    drawn = [data.episode_starts(3, 5).observation for _ in range(6)]
    assert any(not torch.equal(drawn[0], other) for other in drawn)


def test_episode_starts_of_a_store(tmp_path):
    store = make(tmp_path / "s", capacity=40, num_validation_envs=1)
    assert [len(part) for part in store.episode_starts(1)] == [0, 0]
    fill(store, 75, cut=(50, 60))
    for envs, chosen in (("training", [0, 1]), ("validation", [2]), (np.array([2, 0]), [2, 0])):
        env, start = store.episode_starts(3, envs)
        expected = {(of, row) for of in chosen for row in range(35, 73) if (row + of) % 7 == 0 or row in (50, 60)}
        assert set(zip(env.tolist(), start.tolist(), strict=True)) == expected
        assert len(env) == len(expected)
        check(store.gather(env, start, 3), env, start)


def test_episode_starts_are_listed_alike_by_who_learned_of_them_bit_by_bit(tmp_path):
    store = make(tmp_path / "s", capacity=40)
    reader = ReplayStore.open(tmp_path / "s")
    for rows, cut in ((3, 0), (1, 0), (30, 9), (2, 0), (17, 17), (60, 5)):
        fill(store, rows)
        store.truncate(store.rows - cut)
        fresh = ReplayStore.open(tmp_path / "s", verify=False)
        assert np.array_equal(reader.episode_starts(2), fresh.episode_starts(2))
        assert np.array_equal(store.episode_starts(2), fresh.episode_starts(2))
        reader.gather(*reader.episode_starts(2), 2)


# Nothing held out.


class Nothing(lightning.LightningModule):
    def training_step(self, batch, batch_idx):
        assert batch["real"].shape == (6, 4)

    def validation_step(self, batch, batch_idx):
        raise AssertionError

    def configure_optimizers(self):
        return None


class Measured(Nothing):
    test_step = predict_step = Nothing.validation_step


def test_a_run_without_validation_rows_validates_nothing(begin, tmp_path):
    data = begin(20)
    with pytest.raises(UserError, match=r"has no validation environments: set data\.envs\.validation"):
        data.validation_windows(4, 2)
    trainer = lightning.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        max_epochs=2,
        limit_train_batches=2,
        callbacks=PredictionReport(),
    )
    trainer.fit(Nothing(), datamodule=data)
    assert trainer.current_epoch == 2
    for measure in (trainer.validate, trainer.test, trainer.predict):
        with pytest.raises(UserError, match="has no validation environments"):
            measure(Measured(), datamodule=data)


def test_windows_around_events_have_weights_and_only_training_batches_hold_them(begin):
    data = begin(60, validation=1, events=0.5)
    batch = next(iter(data.train_dataloader()))["real"]
    weight = batch.extras["weight"]
    assert weight.shape == batch.shape == (6, 4)
    assert torch.equal(weight, weight[:, :1].expand(6, 4))
    eventful = ((batch.reward != 0) | (batch.continuation == 0))[:, :-1].any(dim=1)
    assert eventful[:3].all(), "half of the batch"
    assert torch.equal(weight[:, 0] < 2, eventful), "a window without one is drawn by the other half alone"
    assert data.sample().extras == data.sample(envs="validation", events=0.5).extras == {}


def test_draws_without_events_are_what_they_were(begin):
    data = begin(40)
    copy = np.random.default_rng()
    copy.bit_generator.state = data.sampler.generator.bit_generator.state
    batch = next(iter(data.train_dataloader()))["real"]
    assert batch.extras == {}
    assert torch.equal(batch.observation, data.store.sample(copy, 6, 4).observation)


def test_the_world_model_may_learn_from_windows_of_its_own(begin):
    """They are drawn uniformly or around events, whatever the policy's are drawn by."""
    windows = ModelSampling(batch_size=40, sequence_length=3, events=0.5)
    data = begin(60, validation=1, prioritised=Prioritised(), world_model=windows)
    batch = next(iter(data.train_dataloader()))
    assert {name: rows.shape for name, rows in batch.items()} == {"real": (6, 4), "model": (40, 3)}
    assert "row" in batch["real"].extras
    assert batch["model"].extras.keys() == {"weight"}
    eventful = ((batch["model"].reward != 0) | (batch["model"].continuation == 0))[:, :-1].any(dim=1)
    assert eventful[:20].all(), "half of the batch"
    assert [rows["real"].shape for rows in data.val_dataloader()] == [(40, 3)] * 2, "validation measures the model"
    assert (data.sampler.sample_for_model(ModelSampling(8, 3)).extras["weight"] == 1).all()


# No open store.


def test_what_needs_a_store_says_that_none_is_open(begin):
    data = begin(9)
    assert data.sample().shape == (6, 4)
    data.teardown("fit")
    for use in (data.sample, data.state_dict, lambda: data.spec, lambda: data.env_steps, lambda: data.collector):
        with pytest.raises(UserError, match="DotReplay has no open store"):
            use()


def test_a_copy_in_another_process_has_no_open_store(begin):
    copy = pickle.loads(pickle.dumps(begin(9)))
    assert copy.training_environment(2, 0).num_envs == 2
    with pytest.raises(UserError, match="DotReplay has no open store"):
        copy.sample()


# What a checkpoint keeps.


@pytest.mark.parametrize("events", [0.0, 0.5])
def test_sampling_goes_on_where_it_stopped(begin, tmp_path, events):
    data = begin(30)
    data.sample(events=events)
    state = data.state_dict()
    expected = [data.sample(events=events).observation for _ in range(3)]
    data.collector.step(RandomActor(4, np.random.default_rng(0)))
    data.teardown("fit")
    again = begin(0)
    assert again.env_steps == 3 * 31
    again.load_state_dict(state)
    assert again.env_steps == 3 * 30
    assert all(torch.equal(again.sample(events=events).observation, observation) for observation in expected)


# Mistakes.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"training": 0}, "data.envs.training must be at least 1"),
        ({"batch_size": 0}, "data.sampling.batch_size must be at least 1"),
        ({"capacity": 0}, "data.storage.capacity must be at least 1"),
        ({"frame_stack": 0}, "data.frame_stack must be at least 1"),
        ({"validation": -1}, "data.envs.validation must be at least 0: got -1"),
        ({"sequence_length": 1}, "data.sampling.sequence_length must be at least 2"),
        ({"events": 1.0}, "data.sampling.events must be at least 0 and less than 1: got 1.0"),
        (
            {"events": 0.5, "cross_episodes": False},
            "data.sampling.events and data.sampling.cross_episodes: false cannot",
        ),
        ({"events": 0.5, "prioritised": Prioritised()}, "data.sampling.events and data.sampling.prioritised cannot"),
        ({"recent": 3}, "data.sampling.recent must be at least data.sampling.sequence_length, 4 rows: got 3"),
    ],
    ids=str,
)
def test_mistakes_get_one_line(options, words):
    with pytest.raises(UserError, match=words) as raised:
        DotReplay(**options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "data.sampling.world_model.batch_size must be at least 1: got 0"),
        ({"sequence_length": 1}, "data.sampling.world_model.sequence_length must be at least 2: got 1"),
        ({"events": -0.1}, "data.sampling.world_model.events must be at least 0 and less than 1: got -0.1"),
    ],
    ids=str,
)
def test_windows_of_the_model_that_cannot_be_get_one_line(options, words):
    with pytest.raises(UserError, match=words) as raised:
        ModelSampling(**options)
    assert "\n" not in str(raised.value)
