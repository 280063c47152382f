import math

import numpy as np
import pytest
import torch

from datamodules.environments.mazes import MazeEnvironments
from modules.batch import Batch
from modules.errors import UserError
from modules.policies.tabular_q import TabularQ
from modules.states.tabular import Tabular
from modules.world_model import Spec
from tests.fakes import PerfectModel

LEFT, RIGHT = 0, 1


def built(policy: TabularQ, num_states: int = 3, num_actions: int = 2) -> TabularQ:
    policy.build((num_states,), num_actions)
    return policy


def corridor() -> Batch:
    """One walk from state 0 over state 1 to state 2, which earns 1 and ends the episode."""
    return Batch(
        action=torch.tensor([[RIGHT, RIGHT, LEFT]]),
        reward=torch.tensor([[0.0, 1.0, 0.0]]),
        continuation=torch.tensor([[1.0, 0.0, 1.0]]),
        is_first=torch.tensor([[True, False, False]]),
        is_last=torch.tensor([[False, False, True]]),
        observation=torch.tensor([[[0.0], [1.0], [2.0]]]),
        state=torch.tensor([[0, 1, 2]]),
    )


def test_backups_by_hand():
    policy = built(TabularQ(discount=0.9, step_size=0.5))
    policy.table[2] = 100  # never looked at: the episode ended there
    assert policy.backup(corridor()) == pytest.approx((0 + 1) / 2)
    assert policy.table[:2].tolist() == [[0, 0], [0, 0.5]]
    assert policy.backup(corridor()) == pytest.approx((0.45 + 0.5) / 2)
    assert policy.table[:2, RIGHT].tolist() == pytest.approx([0.225, 0.75])
    assert policy.table[:2, LEFT].tolist() == [0, 0]


def test_truncation_bootstraps():
    policy = built(TabularQ(discount=0.9, step_size=0.5))
    policy.table[2] = torch.tensor([1.0, 10.0])
    policy.backup(corridor().replace(continuation=torch.ones(1, 3)))
    assert policy.table[1, RIGHT] == pytest.approx(0.5 * (1 + 0.9 * 10))


def test_opening_an_episode_is_no_transition():
    policy = built(TabularQ())
    policy.table[0] = 1
    batch = corridor()[:, [2, 0]]
    assert policy.backup(batch) == 0
    assert policy.table.tolist() == [[1, 1], [0, 0], [0, 0]]


def test_evaluation_learns_nothing():
    policy = built(TabularQ()).eval()
    model = Tabular(3)
    model.build_from(Spec((1,), 1, 2))
    loss, parts, *_ = policy.loss(corridor(), model)
    assert loss is None
    assert parts["td_error"] == 0.5
    assert not policy.table.any()


def test_actions_are_epsilon_greedy_and_ties_are_shared():
    policy = built(TabularQ(epsilon=0.2), num_actions=4)
    policy.table[1] = torch.tensor([1.0, 3.0, 3.0, 2.0])
    policy.table[2] = torch.tensor([-1.0, -2.0, -3.0, -4.0])
    logits, value = policy(torch.eye(3))
    expected = [[0.25] * 4, [0.05, 0.45, 0.45, 0.05], [0.85, 0.05, 0.05, 0.05]]
    assert torch.allclose(logits.exp(), torch.tensor(expected))
    assert value.tolist() == [0, 3, -1]
    greedy, _ = built(TabularQ(epsilon=0.0))(torch.eye(3))
    assert greedy.isfinite().all()


class Remembering(Tabular):
    """Keeps what it rehearsed."""

    def rehearse(self, states: torch.Tensor, num_steps: int) -> Batch:
        self.rehearsed.append((states // self.num_states, super().rehearse(states, num_steps)))
        return self.rehearsed[-1][1]


@pytest.mark.parametrize("kappa", [0.0, 0.01])
def test_environments_learn_as_one_plain_learner_each(kappa):
    """The box of section 8.2, written down in plain Python for each environment by itself, on the same draws."""
    envs, discount, step_size, num_steps = 4, 0.9, 0.3, 500
    environment = MazeEnvironments("blocking", envs, change_at=300)
    cells = environment.num_cells
    model, policy = Remembering(cells, envs, kappa), TabularQ(discount, step_size, epsilon=0.3, planning_steps=4)
    model.rehearsed = []
    model.build_from(Spec((1,), 1, 4))
    policy.build(model.feature_shape, 4)

    values = np.zeros((envs * cells, 4))
    remembered: list[dict] = [{} for _ in range(envs)]
    clock = [0] * envs

    def backup(state, action, reward, continues, after):
        target = reward + discount * continues * values[after].max()
        values[state, action] += step_size * (target - values[state, action])

    observation, is_first, is_last = environment.reset(), np.ones(envs, bool), np.zeros(envs, bool)
    ended = 0
    for _ in range(num_steps):
        states = torch.from_numpy(observation)[:, 0].long()
        action = torch.distributions.Categorical(logits=policy(model.features(states))[0]).sample()
        after = environment.step(action.numpy())
        batch = Batch(
            action=action[:, None].repeat(1, 2),
            reward=torch.from_numpy(after.reward)[:, None].repeat(1, 2),
            continuation=1 - torch.from_numpy(after.terminated).float()[:, None].repeat(1, 2),
            is_first=torch.from_numpy(np.stack([is_first, is_last], 1)),
            is_last=torch.from_numpy(np.stack([is_last, after.terminated], 1)),
            observation=torch.from_numpy(np.stack([observation, after.observation], 1)),
        )
        model.rehearsed.clear()
        states = model.loss(batch).states
        policy.loss(batch.replace(state=states), model)

        moved = np.flatnonzero(~is_last)
        for env in moved:
            state, chosen, following = states[env, 0].item(), action[env].item(), states[env, 1].item()
            transition = after.reward[env], float(not after.terminated[env]), following
            backup(state, chosen, *transition)
            clock[env] += 1
            remembered[env][state, chosen] = *transition, clock[env]
        if len(moved):
            ((rehearsing, dream),) = model.rehearsed
            assert rehearsing.tolist() == moved.tolist()
            for row, env in enumerate(moved):
                for t in range(0, 8, 2):
                    state, chosen = dream.state[row, t].item(), dream.action[row, t].item()
                    untried = (0.0, 1.0, state, 0)
                    assert kappa or (state, chosen) in remembered[env]
                    reward, continues, following, at = remembered[env].get((state, chosen), untried)
                    backup(state, chosen, reward + kappa * math.sqrt(clock[env] - at), continues, following)
        ended += after.terminated.sum()
        observation, is_first, is_last = after.observation, is_last, after.terminated
    assert ended >= 2
    assert np.abs(values).max() > 0.5
    np.testing.assert_allclose(policy.table.numpy(), values, atol=1e-4)


def test_planning_finds_the_optimal_values():
    """Every transition of a maze is shown once; planning alone then reaches discount^(distance - 1)."""
    environment = MazeEnvironments("dyna", 1)
    cells, goal = environment.num_cells, environment.goal
    states, actions = (grid.reshape(-1) for grid in np.meshgrid(np.arange(cells), np.arange(4), indexing="ij"))
    after = environment.moves[0][states, actions]
    keep = states != goal
    states, actions, after = (torch.from_numpy(column[keep]) for column in (states, actions, after))
    zeros = torch.zeros(len(states))
    ends = after == goal
    batch = Batch(
        action=torch.stack([actions, actions], 1),
        reward=torch.stack([ends.float(), zeros], 1),
        continuation=torch.stack([1 - ends.float(), zeros + 1], 1),
        is_first=torch.zeros(len(states), 2, dtype=torch.bool),
        is_last=torch.stack([ends & False, ends], 1),
        observation=torch.stack([states, after], 1).float()[..., None],
    )
    model, policy = Tabular(cells), TabularQ(discount=0.95, step_size=1.0, planning_steps=6_000)
    model.build_from(Spec((1,), 1, 4))
    policy.build(model.feature_shape, 4)
    encoded = model.loss(batch).states
    policy.loss(batch.replace(state=encoded)[:1], model)

    optimal = np.zeros((cells, 4))
    for _ in range(100):
        best = optimal.max(1)
        for state, action, following in zip(states.tolist(), actions.tolist(), after.tolist(), strict=True):
            optimal[state, action] = 1.0 if following == goal else 0.95 * best[following]
    assert optimal[environment.start].max() == pytest.approx(0.95**13)
    np.testing.assert_allclose(policy.table.numpy(), optimal, atol=1e-5)


def test_mistakes_are_told():
    with pytest.raises(UserError, match=r"TabularQ needs the model .*Tabular: got PerfectModel"):
        built(TabularQ()).loss(corridor(), PerfectModel())
    with pytest.raises(UserError, match="one-hot"):
        TabularQ().build((4, 84, 84), 6)
    with pytest.raises(UserError, match="epsilon must be from 0 to 1: got 2"):
        TabularQ(epsilon=2)
    with pytest.raises(UserError, match="planning_steps must not be negative"):
        TabularQ(planning_steps=-1)
