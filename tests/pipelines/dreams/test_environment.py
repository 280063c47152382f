"""Dreams as Gymnasium environments: of a perfect model, so that every number is known, and of a real run."""

import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit

from modules.batch import Batch
from modules.errors import UserError
from modules.identity import IdentityModel
from modules.world_model import Spec, Step, WorldModel
from pipelines.dreams.environment import DreamEnv, DreamVectorEnv
from tests.fakes import SIZE, SPEC, DotWorld, PerfectModel, locate, play

ID = "dreamcade/Dream-v0"
LAST = Path("checkpoints") / "last.ckpt"


class NoisyModel(PerfectModel):
    """Half of its actions are drawn at random, and every tenth step is likely to be the last."""

    def step(self, state: torch.Tensor, action: torch.Tensor) -> Step:
        assert not self.training
        drawn = torch.randint(SPEC.num_actions, action.shape)
        step = super().step(state, torch.where(torch.rand(action.shape) < 0.5, action, drawn))
        return step._replace(continuation=step.continuation * 0.9)


class Line(WorldModel):
    """A number that goes up or down by one, and is itself the reward; at 3 the episode ends."""

    capabilities = frozenset({"step", "reward", "decode"})

    def __init__(self) -> None:
        super().__init__()
        self.build_from(Spec((1,), 1, 2))

    def build(self, spec: Spec) -> None:
        self.state_shape = self.feature_shape = (1,)

    def initial(self, batch_size: int) -> torch.Tensor:
        return torch.zeros(batch_size, 1)

    def observe(self, state, action, observation, is_first) -> torch.Tensor:
        return observation

    def step(self, state: torch.Tensor, action: torch.Tensor) -> Step:
        state = state + 2 * action[:, None] - 1
        return Step(state, state[:, 0], (state[:, 0] != 3).float())

    def decode(self, state: torch.Tensor) -> torch.Tensor:
        return state


@pytest.fixture(scope="module")
def starts(tmp_path_factory) -> Batch:
    """All openings of a store of the dot's world, four rows each; episodes may be shorter."""
    store = play(tmp_path_factory.mktemp("dot") / "store", 80)
    env, start = store.episode_starts(4)
    return store.gather(env, start, 4, frame_stack=4)


@pytest.fixture
def line() -> Batch:
    """An opening at 0."""
    zeros, no = torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.bool)
    return Batch(zeros.long(), zeros, 1 - zeros, ~no, no, observation=zeros[..., None])


def last_rows(starts: Batch) -> list[int]:
    """Where each window's episode can be gone on from, row by row."""
    rows = []
    for first, last in zip(starts.is_first.tolist(), starts.is_last.tolist(), strict=True):
        row = 0
        while row + 1 < len(first) and not first[row + 1] and not last[row + 1]:
            row += 1
        rows.append(row)
    return rows


def random_actions(num_steps: int, num_envs: int) -> np.ndarray:
    return np.random.default_rng(0).integers(SPEC.num_actions, size=(num_steps, num_envs))


def unroll(env: DreamVectorEnv, seed: int | None, between=lambda: None) -> list[np.ndarray]:
    """Everything that an environment returns over 30 steps."""
    columns: list[list[np.ndarray]] = [[], [], [], []]
    columns[0].append(env.reset(seed=seed)[0])
    for actions in random_actions(30, env.num_envs):
        between()
        for column, value in zip(columns, env.step(actions)[:4], strict=True):
            column.append(value)
    return [np.stack(column) for column in columns]


def same(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


# What is dreamed.


def test_a_perfect_model_dreams_exactly_its_world(starts):
    env = DreamVectorEnv(PerfectModel(), 8, starts=starts, max_episode_steps=None)
    world = DotWorld(8, limit=10**6)
    world.reset()
    observation, _ = env.reset(seed=0)
    world.x, world.y = locate(torch.from_numpy(observation[:, -1:]))
    opened, ends = np.zeros(8, bool), 0
    for actions in random_actions(100, 8):
        before = observation
        observation, reward, terminated, truncated, infos = env.step(actions)
        after = world.step(actions)
        np.testing.assert_array_equal(reward, after.reward)
        np.testing.assert_array_equal(terminated, after.terminated)
        assert not truncated.any()
        assert infos == {}
        np.testing.assert_array_equal(observation[~opened, -1:], after.observation[~opened])
        np.testing.assert_array_equal(observation[~opened, :-1], before[~opened, 1:])
        x, y = locate(torch.from_numpy(observation[:, -1:]))
        where = torch.from_numpy(opened)
        world.x, world.y = torch.where(where, x, world.x), torch.where(where, y, world.y)
        opened, ends = terminated, ends + int(terminated.sum())
    assert ends > 20


def test_dreams_begin_where_episodes_go_on_from(starts):
    rows = last_rows(starts)
    assert min(rows) < max(rows) == 3, "no short episode among the starts"
    begins = {starts.observation[i, row].numpy().tobytes() for i, row in enumerate(rows)}
    observation, _ = DreamVectorEnv(PerfectModel(), 40 * len(rows), starts=starts).reset(seed=0)
    assert {one.tobytes() for one in observation} == begins


def test_spaces_and_types(starts, line):
    env = DreamVectorEnv(PerfectModel(), 3, starts=starts)
    assert env.single_observation_space == gymnasium.spaces.Box(0, 255, (4, SIZE, SIZE), np.uint8)
    assert env.single_action_space == gymnasium.spaces.Discrete(4)
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    observation, reward, terminated, truncated, _ = env.step(np.zeros(3, np.int64))
    assert observation in env.observation_space
    assert (reward.dtype, terminated.dtype, truncated.dtype) == (np.float64, bool, bool)
    kept = observation.copy()
    env.step(np.ones(3, np.int64))
    env.reset()
    np.testing.assert_array_equal(observation, kept, "what was returned is written to")
    vectors = DreamVectorEnv(Line(), 2, starts=line)
    assert vectors.single_observation_space == gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)


def test_vectors(line):
    env = DreamVectorEnv(Line(), 2, starts=line, autoreset_mode="SameStep")
    np.testing.assert_array_equal(env.reset(seed=0)[0], [[0], [0]])
    for reached in (1, 2):
        observation, reward, *_ = env.step(np.array([1, 0]))
        assert observation.dtype == np.float32
        np.testing.assert_array_equal(observation, [[reached], [-reached]])
        np.testing.assert_array_equal(reward, [reached, -reached])
    observation, reward, terminated, _, infos = env.step(np.array([1, 0]))
    np.testing.assert_array_equal(terminated, [True, False])
    np.testing.assert_array_equal(observation, [[0], [-3]])
    assert infos["final_obs"][0] == [3]
    with pytest.raises(UserError, match="vectors have no picture"):
        DreamVectorEnv(Line(), 2, starts=line, render_mode="rgb_array")


# When episodes end, and what comes then.


@pytest.mark.parametrize("mode", AutoresetMode)
def test_autoreset_is_that_of_gymnasium(starts, mode):
    """Against Gymnasium's own vector environment of single dreams, from one start: its draws are then no matter."""
    num_envs, limit, model, start = 5, 9, PerfectModel(), starts[:1]
    ours = DreamVectorEnv(model, num_envs, starts=start, autoreset_mode=mode, max_episode_steps=limit)
    single = [lambda: TimeLimit(DreamEnv(model, starts=start), limit)] * num_envs
    theirs = SyncVectorEnv(single, autoreset_mode=mode)
    assert ours.metadata["autoreset_mode"] == mode
    assert data_equivalence(ours.reset(seed=1), theirs.reset(seed=1), exact=True)
    counts = np.zeros(2)
    for actions in random_actions(100, num_envs):
        mine, other = ours.step(actions), theirs.step(actions)
        assert data_equivalence(mine, other, exact=True), (mine[1:], other[1:])
        closed = mine[2] | mine[3]
        counts += mine[2].sum(), mine[3].sum()
        if mode == AutoresetMode.DISABLED and closed.any():
            mine, other = (env.reset(options={"reset_mask": closed.copy()}) for env in (ours, theirs))
            assert data_equivalence(mine, other, exact=True)
    assert counts.min() > 5, "both kinds of ends"


def test_a_partial_reset_leaves_the_others_alone(starts):
    env = DreamVectorEnv(PerfectModel(), 6, starts=starts, autoreset_mode="Disabled", max_episode_steps=4)
    with pytest.raises(ResetNeeded):
        env.reset(options={"reset_mask": np.ones(6, bool)})
    before, _ = env.reset(seed=0)
    before, *_ = env.step(np.zeros(6, np.int64))
    mask = np.array([True, False] * 3)
    after, _ = env.reset(options={"reset_mask": mask})
    np.testing.assert_array_equal(after[~mask], before[~mask])
    begins = {starts.observation[i, row].numpy().tobytes() for i, row in enumerate(last_rows(starts))}
    assert {one.tobytes() for one in after[mask]} <= begins
    for _ in range(2):
        *_, truncated, _ = env.step(np.zeros(6, np.int64))
        assert not truncated.any()
    *_, truncated, _ = env.step(np.zeros(6, np.int64))
    np.testing.assert_array_equal(truncated, ~mask)
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(6, np.int64))
    for wrong in ([True] * 6, np.ones(5, bool), np.ones(6), np.zeros(6, bool)):
        with pytest.raises(UserError, match="reset_mask"):
            env.reset(options={"reset_mask": wrong})


@pytest.mark.parametrize("sampled", [True, False])
def test_ends_follow_the_predicted_continuation(starts, sampled):
    env = DreamVectorEnv(NoisyModel(), 2000, starts=starts[:1], sample_termination=sampled, autoreset_mode="Disabled")
    env.reset(seed=0)
    observation, _, terminated, *_ = env.step(np.zeros(2000, np.int64))
    x, _ = locate(torch.from_numpy(observation[:, -1:]))
    inside = ((x > 0) & (x < SIZE - 1)).numpy()
    assert terminated[~inside].all()
    rate = terminated[inside].mean()
    assert abs(rate - 0.1) < 0.03 if sampled else rate == 0


def test_a_dream_ends_where_the_model_can_dream_no_further(starts):
    class Short(PerfectModel):
        max_horizon = 3

    env = DreamVectorEnv(Short(), 1, starts=starts)
    env.reset(seed=0)
    assert [bool(env.step(np.zeros(1, np.int64))[3][0]) for _ in range(4)] == [False, False, True, False]


# Random numbers.


def test_the_same_seed_is_the_same_dream_whatever_else_draws(starts):
    model = NoisyModel().train()
    reference = unroll(DreamVectorEnv(model, 4, starts=starts), seed=3)
    assert model.training, "the model is not as it was"
    other = DreamVectorEnv(model, 4, starts=starts)
    other.reset(seed=5)

    def disturb():
        torch.rand(7)
        other.step(np.zeros(4, np.int64))

    assert same(unroll(DreamVectorEnv(model, 4, starts=starts), 3, disturb), reference)
    assert not same(unroll(DreamVectorEnv(model, 4, starts=starts), 4), reference)
    assert not same(unroll(DreamVectorEnv(model, 4, starts=starts), None), reference)


def test_torch_draws_on_as_if_nobody_had_dreamed(starts):
    before = torch.get_rng_state()
    unroll(DreamVectorEnv(NoisyModel(), 4, starts=starts), seed=0)
    assert torch.equal(torch.get_rng_state(), before)


# Through Gymnasium.


def test_the_environment_checker_finds_nothing(starts, line):
    env = gymnasium.make(ID, model=PerfectModel(), starts=starts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
    check_env(gymnasium.make(ID, model=Line(), starts=line).unwrapped, skip_render_check=True)


def test_time_limits_are_those_that_gymnasium_is_given(line):
    for arguments, limit in (({}, 1000), ({"max_episode_steps": 1200}, 1200)):
        env = gymnasium.make(ID, model=Line(), starts=line, **arguments)
        vector = gymnasium.make_vec(ID, num_envs=1, model=Line(), starts=line, **arguments)
        env.reset(seed=0)
        vector.reset(seed=0)
        for step in range(limit):
            truncated, batch = env.step(0)[3], vector.step(np.zeros(1, np.int64))[3]
            assert truncated == batch[0] == (step == limit - 1)


def test_gymnasium_finds_it_by_its_module(starts, monkeypatch):
    monkeypatch.delitem(sys.modules, "pipelines.dreams.environment")
    monkeypatch.delitem(gymnasium.registry, ID)
    with pytest.raises(gymnasium.error.NamespaceNotFound):
        gymnasium.make_vec(ID)
    env = gymnasium.make_vec(f"pipelines.dreams.environment:{ID}", num_envs=2, model=PerfectModel(), starts=starts)
    assert env.reset(seed=0)[0].shape == (2, 4, SIZE, SIZE)


def test_rendering(starts):
    env = DreamVectorEnv(PerfectModel(), 2, starts=starts, render_mode="rgb_array", scale=3)
    observation, _ = env.reset(seed=0)
    pictures = env.render()
    assert [(one.shape, one.dtype) for one in pictures] == [((3 * SIZE, 3 * SIZE, 3), np.uint8)] * 2
    for channel in range(3):
        np.testing.assert_array_equal(pictures[1][1::3, 2::3, channel], observation[1, -1])
    assert DreamVectorEnv(PerfectModel(), 2, starts=starts).render() is None
    env = gymnasium.make(ID, model=PerfectModel(), starts=starts, render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (4 * SIZE, 4 * SIZE, 3)


# Of a real run.


def test_a_run_of_the_unet_can_be_dreamed_in(trained):
    env = gymnasium.make_vec(ID, num_envs=3, checkpoint=trained / LAST, game="ALE/Pong-v5", render_mode="rgb_array")
    assert env.single_observation_space == gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    first, *_ = unroll(env, seed=0)
    assert first.shape == (31, 3, 4, 84, 84)
    assert first[-1].std() > 1, "an empty picture"
    assert env.render()[0].shape == (336, 336, 3)
    again, *_ = unroll(gymnasium.make_vec(ID, num_envs=3, checkpoint=str(trained / LAST)), seed=0)
    np.testing.assert_array_equal(first, again)


def test_stable_baselines3_trains_in_a_dream(trained):
    pytest.importorskip("stable_baselines3")
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    env = make_vec_env(lambda: gymnasium.make(ID, checkpoint=trained / LAST), n_envs=2, seed=0)
    learner = PPO("CnnPolicy", env, n_steps=8, batch_size=8, n_epochs=1, seed=0)
    before = [parameter.clone() for parameter in learner.policy.parameters()]
    learner.learn(16)
    assert learner.num_timesteps == 16
    changed = (not torch.equal(*pair) for pair in zip(before, learner.policy.parameters(), strict=True))
    assert any(changed)
    assert all(parameter.isfinite().all() for parameter in learner.policy.parameters())


# What is wrong is said in one line.


GIVEN = object()
"""Stands for the fixture of that name."""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "either a model or a checkpoint"),
        ({"model": PerfectModel(), "checkpoint": GIVEN}, "either a model or a checkpoint"),
        ({"model": PerfectModel()}, "give starts"),
        ({"model": IdentityModel(), "starts": GIVEN}, "has no step and no reward and no decode"),
        ({"model": PerfectModel(), "starts": GIVEN, "num_envs": 0}, "at least 1"),
        ({"model": PerfectModel(), "starts": GIVEN, "max_episode_steps": 0}, "at least 1"),
        ({"model": PerfectModel(), "starts": GIVEN, "autoreset_mode": "samestep"}, "the nearest is SameStep"),
        ({"model": PerfectModel(), "starts": GIVEN, "render_mode": "human"}, "expected rgb_array"),
        ({"model": Line(), "starts": GIVEN}, r"starts have observations of shape \(4, 12, 12\)"),
        ({"checkpoint": GIVEN, "game": "Breakout"}, "is of pong, not of breakout"),
        ({"checkpoint": GIVEN, "game": "CartPole-v1"}, "is of pong, not of CartPole-v1"),
    ],
)
def test_bad_arguments(starts, trained, arguments, words):
    given = {"starts": starts, "checkpoint": trained / LAST}
    arguments = {name: given[name] if value is GIVEN else value for name, value in arguments.items()}
    with pytest.raises(UserError, match=words) as raised:
        DreamVectorEnv(**arguments)
    assert "\n" not in str(raised.value)


def test_bad_use(starts):
    env = DreamVectorEnv(PerfectModel(), 2, starts=starts)
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(2, np.int64))
    env.reset(seed=0)
    for actions in ([0, 4], [-1, 0], [0], 0):
        with pytest.raises(UserError, match="from 0 to 3"):
            env.step(actions)


def test_a_checkpoint_that_was_cut_short(trained, tmp_path):
    path = tmp_path / "cut.ckpt"
    content = (trained / LAST).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cut short"):
        gymnasium.make_vec(ID, checkpoint=path)
