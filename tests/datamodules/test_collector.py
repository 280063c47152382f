import numpy as np
import pytest
import torch

from datamodules.acting import Actor
from datamodules.collector import Collector
from datamodules.replay.store import ReplayStore
from modules.errors import UserError
from pipelines.acting.actors import RandomActor
from tests.fakes import DotWorld, locate, move

NUM_ENVS, ROWS, LIMIT = 3, 160, 12


class Script(Actor):
    """Plays given actions, (rows, N)."""

    def __init__(self, actions) -> None:
        self.rows = iter(actions)

    def act(self, moment):
        return next(self.rows), {}


class Watched(Actor):
    """Notes what the actor is shown and which episode that belongs to."""

    def __init__(self, actor, environment) -> None:
        self.actor, self.environment = actor, environment
        self.observations, self.is_first, self.episodes, self.actions = [], [], [], []

    def act(self, moment):
        actions, extras = self.actor.act(moment)
        for kept, value in zip(
            (self.observations, self.is_first, self.episodes, self.actions),
            (moment.observation, moment.is_first, self.environment.episode, actions),
            strict=True,
        ):
            kept.append(value.copy())
        return actions, extras


def create(path, rows=ROWS) -> ReplayStore:
    return ReplayStore.create(path, observation_shape=DotWorld.observation_shape, num_actions=4, num_envs=NUM_ENVS,
                              capacity=rows)  # fmt: skip


def collect(store, rows=ROWS, actor=None, seed=0):
    environment = DotWorld(NUM_ENVS, LIMIT)
    watched = Watched(actor or RandomActor(4, np.random.default_rng(seed)), environment)
    collector = Collector(environment, store)
    for _ in range(rows):
        collector.step(watched)
    return watched, collector


def whole(store):
    return store.gather(np.arange(store.num_envs), np.zeros(store.num_envs, int), store.rows)


@pytest.fixture
def played(tmp_path):
    store = create(tmp_path / "store")
    return (*collect(store), whole(store))


def test_every_row_keeps_the_contract(played):
    _, _, batch = played
    x, y = locate(batch.observation.flatten(0, 1))
    x, y, reward, terminated = (v.view(NUM_ENVS, ROWS) for v in move(x, y, batch.action.flatten()))
    seen = {"terminated": 0, "truncated": 0, "opened": 0}
    for env in range(NUM_ENVS):
        age = 0
        for t in range(ROWS - 1):
            assert bool(batch.is_first[env, t]) == (age == 0)
            after_x, after_y = locate(batch.observation[env, t + 1 : t + 2])
            if batch.is_last[env, t]:
                assert batch.reward[env, t] == 0
                assert batch.continuation[env, t] == 1
                assert batch.is_first[env, t + 1]
                assert not batch.is_last[env, t + 1]
                seen["opened"] += 1
                age = 0
                continue
            age += 1
            assert (int(after_x), int(after_y)) == (int(x[env, t]), int(y[env, t]))
            assert batch.reward[env, t] == reward[env, t]
            assert batch.continuation[env, t] == 1 - float(terminated[env, t])
            assert not batch.is_first[env, t + 1]
            truncated = age == LIMIT and not terminated[env, t]
            assert bool(batch.is_last[env, t + 1]) == bool(terminated[env, t] or truncated)
            seen["terminated"] += int(terminated[env, t])
            seen["truncated"] += int(truncated)
    assert min(seen.values()) >= 5, seen


def test_rows_hold_what_the_actor_saw_and_chose(played):
    watched, _, batch = played
    assert np.array_equal(batch.observation.numpy(), np.stack(watched.observations, 1))
    assert np.array_equal(batch.is_first.numpy(), np.stack(watched.is_first, 1))
    assert np.array_equal(batch.action.numpy(), np.stack(watched.actions, 1))


def test_follows_holds_within_episodes_alone(played):
    watched, _, batch = played
    episode = np.stack(watched.episodes, 1)
    assert np.array_equal(batch.has_successor().numpy(), episode[:, 1:] == episode[:, :-1])
    assert (episode[:, -1] > 5).all()


def test_returns_are_those_of_the_episodes_that_ended(played):
    watched, collector, batch = played
    episode, reward = np.stack(watched.episodes, 1), batch.reward.numpy()
    expected = []
    for env in range(NUM_ENVS):
        # An episode has ended where its closing observation was made, which a row or, last of all, nobody recorded.
        ended = set(episode[env, batch.is_last[env].numpy()])
        ended |= {episode[env, -1]} if collector.playing.closed[env] else set()
        expected += [reward[env, episode[env] == number].sum() for number in ended]
    assert sorted(collector.returns) == sorted(expected)
    assert {-1.0, 0.0, 1.0} == set(collector.returns)


def test_the_action_chosen_at_a_closing_observation_does_nothing(tmp_path, played):
    watched, _, batch = played
    actions = np.stack(watched.actions)
    last = batch.is_last.numpy().T
    store = create(tmp_path / "other")
    collect(store, actor=Script(np.where(last, (actions + 1) % 4, actions)))
    other = whole(store)
    assert not torch.equal(other.action, batch.action)
    for name in ("observation", "reward", "continuation", "is_first", "is_last"):
        assert torch.equal(getattr(other, name), getattr(batch, name)), name


def test_a_reopened_store_begins_new_episodes(tmp_path):
    store = create(tmp_path / "store", rows=100)
    # Nobody reaches a wall or the limit: the run is cut in the middle of its first episodes.
    first, collector = collect(store, rows=7, actor=Script(np.zeros((7, NUM_ENVS), np.int64)))
    assert not collector.playing.closed.any()
    store.close()
    store = ReplayStore.open(tmp_path / "store", writable=True)
    second, _ = collect(store, rows=40)
    batch = whole(store)
    assert batch.shape == (NUM_ENVS, 47)
    assert batch.is_first[:, 7].all()
    assert not batch.is_last[:, 6].any()
    has_successor = batch.has_successor().numpy()
    assert not has_successor[:, 6].any()
    assert has_successor[:, :6].all()
    episode = np.stack(second.episodes, 1)
    assert np.array_equal(has_successor[:, 7:], episode[:, 1:] == episode[:, :-1])
    assert not np.array_equal(first.observations[0], second.observations[0]), "the same episodes again"


def test_one_environment_per_environment(tmp_path):
    with pytest.raises(AssertionError):
        Collector(DotWorld(NUM_ENVS + 1), create(tmp_path / "store"))


class Fenced(DotWorld):
    """Nobody may walk to the left; whoever wants a clone gets the positions."""

    cloned = 0

    def legal_actions(self):
        legal = np.ones((self.num_envs, 4), bool)
        legal[:, 1] = False
        return legal

    def clone(self):
        self.cloned += 1
        clones = np.empty(self.num_envs, object)
        clones[:] = self.x.tolist()
        return clones


class Cloned(Script):
    """Keeps the moments that it is told of."""

    wants_clone = True

    def act(self, moment):
        self.moments = [*getattr(self, "moments", []), moment]
        return super().act(moment)


def test_actors_are_told_what_is_legal_and_clones_where_they_want_them(tmp_path):
    world, store = Fenced(NUM_ENVS, LIMIT), create(tmp_path / "store", rows=40)
    collector = Collector(world, store)
    for _ in range(30):
        collector.step(RandomActor(4, np.random.default_rng(store.rows)))
    assert set(whole(store).action.flatten().tolist()) == {0, 2, 3}
    assert world.cloned == 0
    actor = Cloned(np.zeros((2, NUM_ENVS), np.int64))
    for _ in range(2):
        collector.step(actor)
    assert world.cloned == 2
    for moment in actor.moments:
        assert [int(x) for x in locate(torch.from_numpy(moment.observation))[0]] == moment.clone.tolist()


def test_a_world_that_cannot_be_cloned_says_so(tmp_path):
    collector = Collector(DotWorld(NUM_ENVS), create(tmp_path / "store"))
    with pytest.raises(UserError, match="DotWorld cannot be cloned"):
        collector.step(Cloned(np.zeros((1, NUM_ENVS), np.int64)))
    assert DotWorld(NUM_ENVS).legal_actions() is None
    assert DotWorld(NUM_ENVS).mover() is None
