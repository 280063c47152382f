"""Windows drawn by priority, against the probabilities that they should have."""

import lightning
import numpy as np
import pytest
import torch

from datamodules.replay.priorities import Priorities, Prioritised
from modules.errors import UserError
from pipelines.acting.actors import RandomActor
from tests.datamodules.replay.test_store import fill, make
from tests.datamodules.test_replay_data import DotReplay
from tests.fakes import DotWorld

DEFAULT = Prioritised()


def source() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def begin(tmp_path):
    """Make a datamodule that draws by priority, and play so many rows."""

    def begin(num_rows: int, prioritised=DEFAULT, **options) -> DotReplay:
        data = DotReplay(prioritised=prioritised, **options)
        data.trainer = lightning.Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False)
        data.setup("fit")
        play(data, num_rows)
        return data

    return begin


def play(data: DotReplay, num_rows: int) -> None:
    actor = RandomActor(DotWorld.num_actions, source())
    for _ in range(num_rows):
        data.collector.step(actor)


def drawn(priorities: Priorities, num: int = 100_000, length: int = 4, cross: bool = True, recent=None):
    """How often each window was drawn, by environment and row, and the largest weight of each."""
    env, start, weight = priorities.draw(source(), num, length, cross, recent)
    counts, weights = np.zeros((priorities.store.num_envs, start.max() + 1)), {}
    np.add.at(counts, (env, start), 1)
    for place, each in zip(zip(env.tolist(), start.tolist(), strict=True), weight.tolist(), strict=True):
        weights.setdefault(place, each)
        assert weights[place] == each
    return counts / num, weights


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 0.4), (0.0, 1.0)])
def test_windows_come_as_often_as_they_should(tmp_path, alpha, beta):
    store = make(tmp_path / "s", capacity=40, num_validation_envs=1)
    fill(store, 23)
    priorities = Priorities(store, Prioritised(alpha, beta, epsilon=0.1))
    priority = np.linspace(0, 3, 2 * 20).reshape(2, 20)
    env, row = np.meshgrid(np.arange(2), np.arange(20), indexing="ij")
    priorities.update(env.ravel(), row.ravel(), priority.ravel())
    probability = (priority + 0.1) ** alpha
    probability /= probability.sum()
    counts, weights = drawn(priorities)
    assert counts.shape == (3, 20)
    assert counts[2].sum() == 0, "held out"
    assert np.abs(counts[:2] - probability).max() < 0.002
    importance = (1 / (40 * probability)) ** beta
    for place, weight in weights.items():
        assert weight == pytest.approx((importance / importance.max())[place], rel=1e-4)


def test_new_rows_have_the_highest_priority_so_far(tmp_path):
    store = make(tmp_path / "s", capacity=40)
    fill(store, 12)
    priorities = Priorities(store, Prioritised(epsilon=1e-6))
    counts, _ = drawn(priorities)
    assert np.abs(counts - 1 / 27).max() < 0.003
    env, row = np.divmod(np.arange(27), 9)
    priorities.update(env, row, np.full(27, 0.5))
    priorities.update(np.array([0]), np.array([0]), np.array([4.0]))
    fill(store, 6)
    counts, _ = drawn(priorities)
    total = 26 * 0.5 + 4 + 9 * 1 + 9 * 4
    assert counts[0, 0] == pytest.approx(4 / total, abs=0.004)
    assert counts[:, 12:].sum() == pytest.approx(36 / total, abs=0.006)
    assert counts[1, 5] == pytest.approx(0.5 / total, abs=0.002)


def test_priorities_of_rows_that_were_overwritten_are_lost(tmp_path):
    store = make(tmp_path / "s", capacity=20)
    fill(store, 20)
    priorities = Priorities(store, Prioritised(epsilon=1e-6))
    priorities.update(np.zeros(17, np.int64), np.arange(17), np.full(17, 9.0))
    fill(store, 10)
    priorities.update(np.array([0, 0]), np.array([3, 15]), np.array([1000.0, 0.0]))
    counts, _ = drawn(priorities)
    assert counts[:, :10].sum() == 0
    assert counts[0, 15] < 1e-3
    assert counts.shape[1] == 27
    fresh = counts[0, 20:].mean()
    assert counts[0, 10:15].mean() == pytest.approx(fresh, rel=0.1), "row 3 is not the one in its slot now"


def test_windows_of_one_episode_and_of_recent_rows(tmp_path):
    store = make(tmp_path / "s", capacity=40)
    fill(store, 30)
    priorities = Priorities(store, Prioritised())
    for cross, recent in ((False, None), (True, 9)):
        env, start, _ = priorities.draw(source(), 5000, 4, cross, recent)
        envs, starts = store.windows(4, "training", cross)
        possible = {(a, b) for a, b in zip(envs.tolist(), starts.tolist(), strict=True) if b >= 30 - (recent or 30)}
        assert set(zip(env.tolist(), start.tolist(), strict=True)) == possible
    with pytest.raises(UserError, match="has no window of 31 rows"):
        priorities.draw(source(), 1, 31, True, None)


# In the datamodule.


def test_a_batch_says_where_it_is_from(begin):
    data = begin(50, validation=1, extras=())
    batch = data.sample()
    env, row, age = (batch.extras[name] for name in ("env", "row", "age"))
    assert env.dtype == row.dtype == torch.int64
    assert batch.shape == env.shape == row.shape == (6, 4)
    again = data.store.gather(env[:, 0].numpy(), row[:, 0].numpy(), 4)
    assert torch.equal(again.observation, batch.observation)
    assert torch.equal(age, 3.0 * (49 - row))
    assert batch.extras["weight"].max() == 1
    assert "env" not in data.sample(envs="validation").extras
    for _ in range(30):
        data.update_priorities(batch, torch.arange(6.0))
        batch = data.sample()
        assert (batch.extras["env"] < 3).all()


def test_a_batch_is_drawn_by_what_its_windows_had_to_teach(begin):
    data = begin(40, Prioritised(epsilon=1e-6))
    for _ in range(200):
        batch = data.sample()
        env, row = batch.extras["env"][:, 0], batch.extras["row"][:, 0]
        data.update_priorities(batch, ((env == 1) & (row == 7)).float())
    places = data.sample(500).extras
    share = ((places["env"][:, 0] == 1) & (places["row"][:, 0] == 7)).float().mean()
    assert share > 0.95


def test_a_run_goes_on_with_its_priorities(begin):
    data = begin(60)
    for _ in range(20):
        batch = data.sample()
        data.update_priorities(batch, torch.rand(6))
    state = data.state_dict()
    expected = [data.sample().extras for _ in range(3)]
    play(data, 13)
    data.update_priorities(batch, torch.full((6,), 50.0))
    data.sample()
    data.teardown("fit")
    again = begin(0)
    again.load_state_dict(state)
    for extras in expected:
        for name, column in again.sample().extras.items():
            assert torch.equal(column, extras[name]), name
    assert again.sampler.priorities._highest < 2


def test_uniform_draws_are_what_they_were(begin):
    """A datamodule that is not told to prioritise draws the very same windows as the store itself."""
    data = begin(40, None)
    copy = np.random.default_rng()
    copy.bit_generator.state = data.sampler.generator.bit_generator.state
    batch = data.sample()
    assert batch.extras == {}
    assert torch.equal(batch.observation, data.store.sample(copy, 6, 4).observation)


@pytest.mark.parametrize("settings", [{"alpha": -1.0}, {"beta": 1.5}, {"epsilon": 0.0}])
def test_mistakes_get_one_line(settings):
    with pytest.raises(UserError, match=r"data\.sampling\.prioritised needs alpha and beta from 0 to 1") as raised:
        Prioritised(**settings)
    assert "\n" not in str(raised.value)
