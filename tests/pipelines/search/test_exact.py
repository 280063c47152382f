"""The search against exact answers: value iteration, and tic-tac-toe to the end."""

import numpy as np
import pytest
import torch

from pipelines.search.rules import Gumbel, Puct, Stop, Uct
from pipelines.search.search import Search
from tests.pipelines.search.worlds import Game, TableWorld, positions, solve

DISCOUNT = 0.5


@pytest.mark.parametrize(
    "rule", [Uct(), Puct(), Puct(first_visit="parent", normalise="node"), Puct(first_visit="mean")]
)
def test_values_and_moves_converge_to_value_iteration(rule):
    errors, regrets = [], []
    for simulations in (10, 100, 3000):
        error, regret = [], []
        for seed in range(6):
            world = TableWorld(num_actions=2, seed=seed)
            roots, q = torch.arange(12), world.solve(DISCOUNT)
            result = Search(rule, Stop(simulations), DISCOUNT).run(roots, world, world.evaluate)
            error.append(np.abs(result.value - q.max(axis=1)).mean())
            regret.append((q.max(axis=1) - q[roots, result.action]).mean())
        errors.append(np.mean(error))
        regrets.append(np.mean(regret))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.05
    assert regrets[2] < min(0.01, regrets[0])


def test_gumbel_plays_best_where_values_are_exact():
    # Its root halves its simulations and its interior is greedy: it improves on what it is told, to no limit.
    for seed in range(6):
        world = TableWorld(seed=seed)
        q = world.solve(DISCOUNT)
        world.value = torch.from_numpy(q.max(axis=1)).float()
        roots = torch.arange(12)
        result = Search(Gumbel(c_scale=100, scale=0), Stop(4), DISCOUNT).run(roots, world, world.evaluate)
        np.testing.assert_allclose(q[roots, result.action], q.max(axis=1), atol=1e-5)


@pytest.fixture(scope="module")
def tic_tac_toe():
    game = Game("tic_tac_toe")
    start = game.game.new_initial_state()
    return game, positions(start), solve(start)


def search(rule, simulations, **settings):
    return Search(rule, Stop(simulations), discount=1, players=2, bounds=(-1, 1), **settings)


@pytest.mark.parametrize("rule", [Uct(), Puct(), Gumbel(c_scale=1, scale=0)])
def test_what_is_proven_of_tic_tac_toe_is_exact_at_every_position(tic_tac_toe, rule):
    game, states, known = tic_tac_toe
    assert len(states) == 4520
    result = search(rule, 150).run(game.roots(states), game, game.evaluate)
    exact = np.array([known[str(state)] for state in states])
    assert (result.value[result.proven] == exact[result.proven]).all()
    assert result.proven.mean() > 0.8
    for b in range(0, len(states), 50):
        for node in result.tree.nodes(b):
            if node.proven:
                assert node.value == known[str(result.tree.state(b, node.index))]


@pytest.mark.parametrize("rule", [Uct(), Puct()])
def test_a_proven_move_keeps_the_value(tic_tac_toe, rule):
    game, states, known = tic_tac_toe
    states = [state for state in states if str(state).count(".") <= 6]
    result = search(rule, 600).run(game.roots(states), game, game.evaluate)
    assert result.proven.mean() > 0.99
    for b in np.flatnonzero(result.proven):
        state = states[b]
        child = state.child(int(result.action[b]))
        value = child.returns()[state.current_player()] if child.is_terminal() else -known[str(child)]
        assert value == known[str(state)]


def test_the_empty_board_is_proven_a_draw_and_the_search_stops(tic_tac_toe):
    game, states, _ = tic_tac_toe
    result = search(Uct(), 50_000).run(game.roots(states[:1]), game, game.evaluate)
    assert result.proven[0]
    assert result.value[0] == 0
    assert result.simulations[0] < 50_000


def test_a_loss_is_resisted_longest():
    # X threatens twice: both of O's blocks lose next move, every other move loses at once.
    game = Game("tic_tac_toe")
    state = game.game.new_initial_state()
    for action in (0, 1, 4, 8, 3):
        state.apply_action(action)
    result = search(Uct(), 500).run(game.roots([state]), game, game.evaluate)
    assert result.proven[0]
    assert result.value[0] == -1
    assert result.action[0] == result.visits[0].argmax()


def test_bounds_prove_in_one_players_worlds_with_rewards():
    # No cycles: next states have higher numbers, and the last ends.
    world = TableWorld(num_states=6, num_actions=2, seed=3)
    world.next = torch.minimum(torch.arange(6)[:, None] + 1 + torch.arange(2), torch.tensor(5))
    world.continuation[:5], world.continuation[5] = 1, 0
    # Only 0 ends: what lies between is a part of the discount.
    world.continuation[2, 0] = 0.5
    q = world.solve(0.9)
    result = Search(Uct(), Stop(3000), 0.9, bounds=(0, 5)).run(torch.arange(6), world, world.evaluate)
    assert result.proven.all()
    np.testing.assert_allclose(result.value, q.max(axis=1), rtol=1e-5)
    assert (result.action == q.argmax(axis=1)).all()
    assert (result.simulations < 1000).all()


def test_a_depth_limit_proves_nothing(tic_tac_toe):
    game, states, _ = tic_tac_toe
    result = search(Uct(), 100, max_depth=2).run(game.roots(states[-5:]), game, game.evaluate)
    assert not result.proven.any()
    assert (result.max_depth <= 2).all()
