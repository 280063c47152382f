"""Random play, two networks and their mix, against exact values."""

import numpy as np
import pytest
import torch

from modules.errors import UserError
from modules.world_model import Step
from pipelines.search.contract import Evaluation
from pipelines.search.evaluators import Mixed, PriorAndValue, Rollouts, Uniform
from pipelines.search.rules import Stop, Uct
from pipelines.search.search import Search
from tests.pipelines.search.worlds import Game, TableWorld


def chain(length=6):
    """One action, a reward per state, and an end."""
    world = TableWorld(num_states=length, num_actions=1, end=0)
    world.next[:, 0] = torch.arange(1, length + 1).clamp(max=length - 1)
    world.reward[:, 0] = torch.arange(1.0, length + 1)
    world.continuation[-1] = 0
    return world


def exact(start, depth, discount, length=6, sign=1):
    steps = range(min(depth, length - start))
    return sum((sign * discount) ** t * (start + t + 1) for t in steps)


@pytest.mark.parametrize("depth", [1, 3, 6, 50, None])
@pytest.mark.parametrize("players", [1, 2])
def test_a_chain_earns_its_discounted_rewards(depth, players):
    world = chain()
    rollouts = Rollouts(world, depth, 0.9, players, num_actions=1)
    judged = rollouts(torch.arange(6))
    expected = [exact(start, depth or 99, 0.9, sign=1 if players == 1 else -1) for start in range(6)]
    np.testing.assert_allclose(judged.value, expected, rtol=1e-6)
    assert judged.actions is None
    assert judged.logits.shape == (6, 1)
    assert world.steps == min(depth or 99, 6)


def test_what_is_cut_goes_on_with_a_value():
    world = chain()
    rollouts = Rollouts(world, 2, 0.5, num_actions=1, value=lambda states: Evaluation(None, 100.0 * (states + 1)))
    # From 3: 4 + 5 / 2, and a quarter of state 5's; from 4 the chain ends with the second step.
    assert rollouts(torch.tensor([3, 4])).value.tolist() == [4 + 2.5 + 150, 5 + 3]


def test_continuations_weigh_what_follows():
    world = chain()
    world.continuation[1] = 0.5
    np.testing.assert_allclose(
        Rollouts(world, 3, 1.0, num_actions=1)(torch.tensor([1])).value, [2 + 0.5 * (3 + 4)], rtol=1e-6
    )


def test_play_that_never_ends_is_named(monkeypatch):
    monkeypatch.setattr("pipelines.search.evaluators.ENDLESS", 50)
    world = TableWorld(end=0)
    with pytest.raises(UserError, match="did not end within 50 steps: give it a depth"):
        Rollouts(world, num_actions=4)(torch.arange(3))


def enumerated(state):
    """What random play is worth to the mover of a position, exactly."""
    moves = []
    for action in state.legal_actions():
        child = state.child(action)
        over = child.is_terminal()
        moves.append(child.returns()[state.current_player()] if over else -enumerated(child))
    return float(np.mean(moves))


@pytest.mark.parametrize("moves", [(4, 0), (0, 4, 8), (4, 0, 1, 7)])
@pytest.mark.parametrize("by_steps", [False, True])
def test_the_mean_of_many_games_is_that_of_all_games(moves, by_steps):
    game = Game("tic_tac_toe")
    state = game.game.new_initial_state()
    for action in moves:
        state.apply_action(action)
    count, rollouts = 4000, Rollouts(game, players=2, generator=np.random.default_rng(3))
    roots = game.roots([state] * count)
    values = rollouts.play(roots) if by_steps else rollouts(roots).value
    assert values.dtype == np.float32
    # Five standard errors at most.
    assert abs(values.mean() - enumerated(state)) < 5 * values.std() / count**0.5
    assert set(values.tolist()) <= {-1, 0, 1}
    assert str(roots[0]) == str(state), "a position is never written to"


def test_both_ways_to_play_discount_and_cut_alike():
    game = Game("tic_tac_toe")
    state = game.game.new_initial_state()
    for action in (4, 0, 1, 7, 3, 5):  # two ways to win are left, three cells
        state.apply_action(action)
    for depth in (1, 2, 3, None):
        rollouts = Rollouts(game, depth, 0.5, players=2, generator=np.random.default_rng(3))
        roots = game.roots([state] * 3000)
        fast, slow = rollouts(roots).value, rollouts.play(roots)
        assert set(fast.tolist()) == set(slow.tolist())
        assert abs(fast.mean() - slow.mean()) < 0.06


def test_games_that_are_over_are_worth_nothing():
    game = Game("tic_tac_toe")
    state = game.game.new_initial_state()
    for action in (0, 3, 1, 4, 2):
        state.apply_action(action)
    roots = game.roots([state, game.game.new_initial_state()])
    judged = Rollouts(game, players=2)(roots)
    assert judged.value[0] == 0
    assert (judged.actions[0] == -1).all()
    assert Rollouts(game, players=2).play(roots)[0] == 0


def test_a_search_with_random_games_blocks_and_wins():
    game = Game("tic_tac_toe")
    block, win = game.game.new_initial_state(), game.game.new_initial_state()
    for action in (0, 4, 1):  # X threatens 2
        block.apply_action(action)
    for action in (0, 3, 1, 4):  # X wins at 2, where O would win at 5
        win.apply_action(action)
    search = Search(Uct(), Stop(300), discount=1, players=2)
    found = search.run(game.roots([block, win]), game, Rollouts(game, players=2))
    assert found.action.tolist() == [2, 2]


def test_the_prior_of_one_and_the_value_of_another():
    world = TableWorld()
    states = torch.arange(5)
    judged = PriorAndValue(world.evaluate, lambda at: Evaluation(None, 2.0 * at), temperature=2.0)(states)
    assert torch.equal(judged.logits, world.logits[states] / 2)
    assert judged.value.tolist() == [0, 2, 4, 6, 8]
    game = Game("tic_tac_toe")
    roots = game.roots([game.game.new_initial_state()])
    assert PriorAndValue(Uniform(game), Rollouts(game, players=2))(roots).actions.tolist() == [list(range(9))]


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_mix_is_linear(weight):
    world = TableWorld()
    states = torch.arange(5)
    judged = Mixed(world.evaluate, lambda at: Evaluation(None, np.arange(5, dtype=np.float64)), weight)(states)
    expected = (1 - weight) * world.value[states] + weight * torch.arange(5)
    np.testing.assert_allclose(judged.value, expected, rtol=1e-6)
    assert torch.equal(judged.logits, world.logits[states])
    assert judged.value.dtype == torch.float32


class Silent:
    def step(self, states, actions):
        return Step(states, torch.zeros(len(states)), torch.ones(len(states)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Rollouts(Silent()), "Silent does not say how many actions there are: give num_actions"),
        (lambda: Rollouts(Silent(), 0, num_actions=2), "a depth of at least 1: got 0"),
        (lambda: Rollouts(Silent(), players=3, num_actions=2), "players is 3"),
        (lambda: Mixed(None, None, 1.5), "from 0 to 1: got 1.5"),
        (lambda: PriorAndValue(None, None, 0), "temperature of a prior must be positive: got 0"),
    ],
)
def test_mistakes_get_one_line(make, words):
    with pytest.raises(UserError, match=words):
        make()
