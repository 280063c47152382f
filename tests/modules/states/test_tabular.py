import copy

import numpy as np
import pytest
import torch

from modules.batch import Batch
from modules.errors import UserError
from modules.imagination import imagine
from modules.states.tabular import Tabular
from modules.world_model import Spec

LEFT, RIGHT = 0, 1
SPEC = Spec((1,), 1, 2)


def table(num_states: int = 4, num_envs: int = 1, exploration_bonus: float = 0.0) -> Tabular:
    model = Tabular(num_states, num_envs, exploration_bonus)
    model.build_from(SPEC)
    return model


def window(*rows: tuple[int, int, float], ends: bool = False) -> Batch:
    """One window of rows (state, action, reward); the last one may close a terminated episode."""
    state, action, reward = zip(*rows, strict=True)
    is_last = torch.zeros(1, len(rows), dtype=torch.bool)
    is_last[0, -1] = ends
    continuation = torch.ones(1, len(rows))
    continuation[0, -2] -= float(ends)
    return Batch(
        action=torch.tensor([action]),
        reward=torch.tensor([reward], dtype=torch.float32),
        continuation=continuation,
        is_first=torch.zeros(1, len(rows), dtype=torch.bool),
        is_last=is_last,
        observation=torch.tensor([state], dtype=torch.float32)[..., None],
    )


def stack(*windows: Batch) -> Batch:
    columns = {name: [vars(w)[name] for w in windows] for name in vars(windows[0]) if name not in ("state", "extras")}
    return Batch(**{name: torch.cat(values) for name, values in columns.items()})


def lookup(model: Tabular, state: int, action: int) -> tuple[int, float, float]:
    step = model.step(torch.tensor([state]), torch.tensor([action]))
    return step.state.item(), step.reward.item(), step.continuation.item()


def test_what_was_seen_last_is_predicted():
    model = table()
    model.loss(window((0, RIGHT, 0.5), (1, RIGHT, 2.0), (2, LEFT, 0.0), ends=True))
    assert lookup(model, 0, RIGHT) == (1, 0.5, 1)
    assert lookup(model, 1, RIGHT) == (2, 2.0, 0)
    # The last row's action was never executed, and what was never tried changes nothing.
    assert lookup(model, 2, LEFT) == (2, 0, 1)
    assert lookup(model, 1, LEFT) == (1, 0, 1)
    model.loss(window((1, RIGHT, -1.0), (3, LEFT, 0.0)))
    assert lookup(model, 1, RIGHT) == (3, -1.0, 1)
    model.loss(window((1, RIGHT, 5.0), (1, RIGHT, 6.0), (0, LEFT, 0.0)))
    assert lookup(model, 1, RIGHT) == (0, 6.0, 1), "a later row counts, not an earlier one"


def test_the_loss_is_the_share_of_wrong_predictions():
    model = table()
    seen = window((0, RIGHT, 0.0), (0, RIGHT, 0.0), (1, RIGHT, 0.0), (2, LEFT, 0.0))
    _, parts, states, _ = model.loss(seen)
    # Never tried, then told to stay and moved, then never tried.
    assert parts["loss"] == 1
    assert states.tolist() == [[0, 0, 1, 2]]
    parts = model.loss(seen).logs
    assert parts["loss"] == pytest.approx(2 / 3)
    parts = model.loss(window((1, RIGHT, 1.0), (2, LEFT, 0.0))).logs
    assert parts["loss"] == 1, "the reward was another"


def test_opening_an_episode_is_no_transition():
    model = table()
    batch = window((0, RIGHT, 0.0), (3, RIGHT, 0.0), (0, RIGHT, 0.0))
    batch.is_last[0, 1] = batch.is_first[0, 2] = True
    model.loss(batch)
    assert model.tried.nonzero().tolist() == [[0, RIGHT]]
    assert model.clock.tolist() == [1]
    parts = model.loss(batch[:, 1:]).logs
    assert parts["loss"] == 0
    assert model.clock.tolist() == [1]


def test_evaluation_learns_nothing():
    model = table().eval()
    before = copy.deepcopy(model).state_dict()
    parts = model.loss(window((0, RIGHT, 1.0), (1, RIGHT, 0.0))).logs
    assert parts["loss"] == 1
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items() if name != "_extra_state")


def test_environments_have_times_of_their_own():
    model = table(num_envs=3)
    model.loss(stack(window((0, RIGHT, 0.0), (1, RIGHT, 0.0)), window((8, LEFT, 0.0), (9, RIGHT, 0.0))))
    model.loss(window((9, RIGHT, 0.0), (10, RIGHT, 0.0)))
    assert model.clock.tolist() == [1, 0, 2]
    assert model.tried_at[[0, 8, 9], [RIGHT, LEFT, RIGHT]].tolist() == [1, 1, 2]


def known(exploration_bonus: float) -> Tabular:
    """Environment 1 of 2 knows state 4 by both actions and state 6 by one."""
    model = table(num_envs=2, exploration_bonus=exploration_bonus)
    model.loss(window((4, LEFT, 0.0), (4, RIGHT, 0.0), (6, RIGHT, 3.0), (7, RIGHT, 0.0), ends=True))
    return model


@pytest.mark.parametrize(
    ("bonus", "shares"),
    [
        (0.0, {(4, LEFT): 0.25, (4, RIGHT): 0.25, (6, RIGHT): 0.5}),
        (0.1, {(4, LEFT): 0.25, (4, RIGHT): 0.25, (6, LEFT): 0.25, (6, RIGHT): 0.25}),
    ],
)
def test_pairs_are_recalled_uniformly(bonus, shares):
    """States first, then actions; the closing state is never acted in. With a bonus untried actions count as well."""
    states, actions = known(bonus).recall(torch.tensor([1, 1]), 4000)
    assert states.shape == actions.shape == (2, 4000)
    pairs, counts = np.unique(torch.stack([states, actions]).flatten(1), axis=1, return_counts=True)
    found = {tuple(pair): count / 8000 for pair, count in zip(pairs.T.tolist(), counts, strict=True)}
    assert found == pytest.approx(shares, abs=0.02)


def test_rehearsed_steps_are_episodes_in_order():
    model = known(0.0)
    dream = model.rehearse(torch.tensor([5]), 50)
    assert dream.shape == (1, 100)
    assert dream.has_successor().tolist() == [[t % 2 == 0 for t in range(99)]]
    for t in range(0, 100, 2):
        state, action = dream.state[0, t].item(), dream.action[0, t].item()
        step = (dream.state[0, t + 1].item(), dream.reward[0, t].item(), dream.continuation[0, t].item())
        assert step == lookup(model, state, action)
    assert (dream.reward[0, 0::2] == 3).any()
    assert (dream.reward[0, 1::2] == 0).all()


def test_the_bonus_grows_with_the_square_root_of_the_time_since():
    model = known(0.1)
    for _ in range(6):
        model.loss(window((4, RIGHT, 0.0), (6, RIGHT, 0.0)))  # one transition each: the clock is 9 at last
    dream = model.rehearse(torch.tensor([4]), 200)
    rewards = {
        (dream.state[0, t].item(), dream.action[0, t].item()): dream.reward[0, t].item() for t in range(0, 400, 2)
    }
    tried_at = {(4, LEFT): 1, (4, RIGHT): 9, (6, LEFT): 0, (6, RIGHT): 3}
    assert rewards == pytest.approx({k: 3 * (k == (6, RIGHT)) + 0.1 * (9 - at) ** 0.5 for k, at in tried_at.items()})
    assert lookup(model, 6, LEFT) == (6, 0, 1), "the bonus is no part of the world"


def test_it_dreams_like_any_model():
    model = table()
    model.loss(window((0, RIGHT, 0.0), (1, RIGHT, 1.0), (2, LEFT, 0.0), ends=True))
    dream = imagine(model, None, torch.tensor([0]), 2, actions=torch.tensor([[RIGHT, RIGHT]]))
    assert dream.state.tolist() == [[0, 1, 2]]
    assert dream.reward.tolist() == [[0, 1, 0]]
    assert dream.continuation.tolist() == [[1, 0, 1]]
    assert model.features(dream.state[0]).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert model.decode(dream.state[0]).tolist() == [[0], [1], [2]]


def test_mistakes_are_told():
    with pytest.raises(UserError, match=r"state 4 is not among the 4 .* num_envs is 1"):
        table().loss(window((4, RIGHT, 0.0), (1, RIGHT, 0.0)))
    with pytest.raises(UserError, match=r"index of a state: got shape \(4,\)"):
        Tabular(4).build_from(Spec((4,), 1, 2))
    with pytest.raises(UserError, match="num_states >= 1"):
        Tabular(0)
