"""The trees: compact edges, subtrees kept between moves, and what is read off them."""

import itertools

import numpy as np
import pytest
import torch

from pipelines.search.rules import Dirichlet, Gumbel, Puct, Stop, Uct
from pipelines.search.search import Search
from tests.pipelines.search.worlds import Game, TableWorld


def described(tree, b):
    """What is known of a tree, whatever its indices: by path of actions from the root."""
    paths, known = {0: ()}, {}
    for node in tree.nodes(b):
        paths[node.index] = path = (*paths[node.parent], node.action) if node.parent >= 0 else ()
        edges = tree.edges(b, node.index)
        columns = tuple(edges[name].tolist() for name in ("action", "visits", "value", "prior", "reward", "discount"))
        known[path] = (node.visits, node.value, node.depth, node.proven, columns)
    return known


def test_a_node_takes_no_more_room_than_its_legal_actions():
    game = Game("connect_four")
    states = [game.game.new_initial_state(), game.game.new_initial_state()]
    for action in (0, 0, 0, 0, 0, 0):
        states[1].apply_action(action)
    tree = Search(Uct(), Stop(300), players=2).run(game.roots(states), game, game.evaluate).tree
    for b in range(2):
        used = 0
        for node in tree.nodes(b):
            legal = tree.state(b, node.index).legal_actions()
            assert tree.edges(b, node.index)["action"].tolist() == legal
            used += len(legal)
        assert tree.roots[b]["edges"] == used
    assert tree.roots[1]["edges"] < tree.roots[0]["edges"]


def test_objects_that_idle_are_not_asked_of_the_rules():
    game = Game("tic_tac_toe")
    start, late = game.game.new_initial_state(), game.game.new_initial_state()
    for action in (0, 1, 3, 4):
        late.apply_action(action)
    search = Search(Uct(), Stop(100), discount=1, players=2, bounds=(-1, 1))
    result = search.run(game.roots([start, late]), game, game.evaluate)
    assert result.proven.tolist() == [False, True]
    assert game.rows[0] == 2
    assert game.rows[-1] == 1
    assert result.value[1] == 1
    assert late.child(int(result.action[1])).is_terminal()


def test_what_a_node_says_follows_from_what_lies_below_it():
    world = TableWorld(num_actions=3)
    result = Search(Puct(), Stop(150), 0.9).run(torch.arange(5), world, world.evaluate)
    for b in range(5):
        nodes = {node.index: node for node in result.tree.nodes(b)}
        for index, node in nodes.items():
            state = result.tree.state(b, index)
            edges = result.tree.edges(b, index)
            assert node.visits == 1 + edges["visits"].sum()
            value = (world.value[state] + (edges["visits"] * edges["value"]).sum()) / node.visits
            np.testing.assert_allclose(node.value, value, rtol=1e-4)
            for edge in edges[edges["child"] >= 0]:
                child = nodes[int(edge["child"])]
                assert result.tree.state(b, child.index) == world.next[state, child.action]
                assert (child.parent, child.visits, child.depth) == (index, edge["visits"], node.depth + 1)
                np.testing.assert_allclose(edge["value"], child.reward + 0.9 * child.value, rtol=1e-4)
        assert result.visits[b].sum() == 150
        assert result.max_depth[b] >= max(node.depth for node in nodes.values())


def test_the_principal_line_follows_the_visits():
    world = TableWorld(end=0)
    tree = Search(Puct(), Stop(100)).run(torch.arange(3), world, world.evaluate).tree
    line, nodes = tree.principal(2), {node.index: node for node in tree.nodes(2)}
    assert line[0] == 0
    assert len(line) > 2
    for parent, child in itertools.pairwise(line):
        siblings = [node for node in nodes.values() if node.parent == parent]
        assert nodes[child].visits == max(node.visits for node in siblings)


@pytest.mark.parametrize("rule", [Uct(), Puct(first_visit="mean")])
def test_to_go_on_is_to_have_searched_longer(rule):
    world = TableWorld(num_states=30, num_actions=5)
    roots = torch.arange(6)
    whole = Search(rule, Stop(120)).run(roots, world, world.evaluate)
    part = Search(rule, Stop(50)).run(roots, world, world.evaluate)
    roots_evaluated = world.evaluations - world.steps
    rest = Search(rule, Stop(70)).run(roots, world, world.evaluate, tree=part.tree)
    assert (rest.simulations == 70).all()
    assert world.evaluations - world.steps == roots_evaluated  # and not again
    for name in ("visits", "q", "policy", "value", "action"):
        np.testing.assert_array_equal(getattr(rest, name), getattr(whole, name))
    for b in range(6):
        assert described(rest.tree, b) == described(whole.tree, b)


@pytest.mark.parametrize("rule", [Uct(), Puct(), Gumbel(scale=0)])
def test_a_subtree_keeps_all_that_was_known_of_it(rule):
    world = TableWorld(num_actions=3, end=0.1, seed=1)
    result = Search(rule, Stop(90)).run(torch.arange(6), world, world.evaluate)
    before = [described(result.tree, b) for b in range(6)]
    actions = result.visits.argmax(axis=1)
    tree = result.tree.advance(actions)
    for b, action in enumerate(actions):
        after = described(tree, b)
        below = {
            path[1:]: (visits, value, depth - 1, *rest)
            for path, (visits, value, depth, *rest) in before[b].items()
            if path[:1] == (action,)
        }
        assert after == below
        for node in tree.nodes(b):
            state = tree.state(b, node.index)
            if node.parent >= 0:
                assert state == world.next[tree.state(b, node.parent), node.action]
            else:
                assert state == world.next[b, action]
        assert described(result.tree, b) == before[b]  # the old tree is whole

    # The next move's search goes on from there; its own simulations come on top.
    next_roots = world.next[torch.arange(6), torch.from_numpy(actions)]
    kept = np.array([len(described(tree, b)) and tree.node_pool[b, 0]["visits"] - 1 for b in range(6)])
    again = Search(rule, Stop(40)).run(next_roots, world, world.evaluate, tree=tree)
    np.testing.assert_array_equal(again.visits.sum(axis=1), kept + 40)


def test_games_go_on_with_their_subtrees_to_the_end():
    game = Game("tic_tac_toe")
    search = Search(Puct(), Stop(60), discount=1, players=2, bounds=(-1, 1), noise=Dirichlet())
    states, tree = [game.game.new_initial_state() for _ in range(4)], None
    generator = np.random.default_rng(0)
    while not any(state.is_terminal() for state in states):
        result = search.run(game.roots(states), game, game.evaluate, tree=tree, generator=generator)
        legal = np.zeros((4, 9), bool)
        for row, state in zip(legal, states, strict=True):
            row[state.legal_actions()] = True
        wide = result.visits.shape[1]
        assert (result.visits[~legal[:, :wide]] == 0).all()
        np.testing.assert_allclose(result.policy.sum(axis=1), 1, rtol=1e-5)
        actions = result.draw(1.0, generator)
        for state, action in zip(states, actions, strict=True):
            state.apply_action(int(action))
        tree = result.tree.advance(actions)
        for b, state in enumerate(states):
            if len(tree.nodes(b)):
                assert str(tree.state(b, 0)) == str(state)


def test_what_was_never_searched_or_is_over_or_forgotten_starts_anew():
    world = TableWorld(num_actions=4, end=0)
    world.continuation[0] = 0
    search = Search(Puct(), Stop(30))
    result = search.run(torch.arange(3), world, world.evaluate)
    tree = result.tree.advance(np.array([result.action[0], -1, result.action[2]]))
    assert [len(tree.nodes(b)) > 0 for b in range(3)] == [False, False, True]
    fresh = search.run(torch.tensor([5, 6]), world, world.evaluate)
    roots = torch.tensor([5, 6, int(tree.state(2, 0))])
    mixed = search.run(roots, world, world.evaluate, tree=tree)
    np.testing.assert_array_equal(mixed.visits[:2], fresh.visits)
    assert mixed.visits[2].sum() > 30


@pytest.mark.parametrize("rule", [Uct(), Puct(), Gumbel(scale=0)])
def test_edges_illegal_at_a_reused_root_are_dropped(rule):
    world = TableWorld(num_actions=5, end=0)
    result = Search(rule, Stop(80)).run(torch.arange(4), world, world.evaluate)
    tree = result.tree.advance(result.visits.argmax(axis=1))
    legal = np.zeros((4, 5), bool)
    legal[:, [1, 3]] = True
    roots = torch.stack([tree.state(b, 0) for b in range(4)])
    before = [{int(e["action"]): int(e["visits"]) for e in tree.edges(b, 0)} for b in range(4)]
    again = Search(rule, Stop(20)).run(roots, world, world.evaluate, tree=tree, legal=legal)
    assert (again.visits[~legal] == 0).all()
    for b in range(4):
        assert again.visits[b].sum() == before[b][1] + before[b][3] + 20
        assert again.visits[b, 1] >= before[b][1]
    expected = world.logits[roots].masked_fill(~torch.from_numpy(legal), -torch.inf).softmax(dim=1)
    np.testing.assert_allclose(again.prior, expected, atol=1e-5)
    for b in range(4):
        for node in again.tree.nodes(b)[1:]:
            assert again.tree.edge_pool[b, again.tree.node_pool[b, node.index]["edge"]]["child"] == node.index


def test_proofs_are_kept_between_moves():
    game = Game("tic_tac_toe")
    state = game.game.new_initial_state()
    for action in (0, 4, 8):
        state.apply_action(action)
    search = Search(Uct(), Stop(3000), discount=1, players=2, bounds=(-1, 1))
    result = search.run(game.roots([state]), game, game.evaluate)
    assert result.proven[0]
    child = state.child(int(result.action[0]))
    game.rows.clear()
    again = search.run(game.roots([child]), game, game.evaluate, tree=result.tree.advance(result.action))
    assert again.proven[0]
    assert again.value[0] == -result.value[0]
    assert not game.rows


def test_draws_follow_the_temperature():
    world = TableWorld()
    result = Search(Puct(), Stop(50)).run(torch.zeros(4000, dtype=torch.int64), world, world.evaluate)
    generator = np.random.default_rng(0)
    for temperature in (1.0, 0.5):
        expected = result.policy[0] ** (1 / temperature)
        drawn = np.bincount(result.draw(temperature, generator), minlength=4) / 4000
        np.testing.assert_allclose(drawn, expected / expected.sum(), atol=0.03)
    assert (result.draw(0, generator) == result.action).all()
