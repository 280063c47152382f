"""What is drawn of a tree: the right part of it, with the right frames, and where the game ends."""

from collections import Counter

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from modules.identity import IdentityModel
from pipelines.search.contract import Evaluation
from pipelines.search.picture import PRINCIPAL, chosen, draw_line, draw_tree, frames_of
from pipelines.search.rules import Puct, Stop, Uct
from pipelines.search.search import Search
from tests.fakes import MEANINGS, PerfectModel, render
from tests.pipelines.search.worlds import Game, TableWorld

MAGENTA = (255, 0, 255)


def table(simulations, roots=(3,)):
    world = TableWorld()
    search = Search(Puct(), Stop(simulations=simulations), discount=0.9)
    return search.run(torch.tensor(roots), world, world.evaluate).tree


def game(moves, simulations=400):
    """Tic-tac-toe after some moves, searched to its end."""
    world = Game("tic_tac_toe")
    state = world.game.new_initial_state()
    for move in moves:
        state.apply_action(move)
    search = Search(Uct(), Stop(simulations=simulations, proven=False), 1.0, players=2, bounds=(-1, 1))
    return search.run(world.roots([state]), world, world.evaluate).tree


def dots():
    """A tree of PerfectModel from the middle of DotWorld."""
    model, roots = PerfectModel(), render(torch.tensor([5]), torch.tensor([2])).repeat(1, 4, 1, 1)

    def evaluate(states):
        return Evaluation(torch.zeros(len(states), 4), torch.zeros(len(states)))

    return model, Search(Puct(), Stop(simulations=60)).run(roots, model, evaluate).tree


def magenta(states):
    return np.broadcast_to(np.uint8(MAGENTA), (len(states), 5, 5, 3))


def pixels(path, color) -> int:
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return int((np.abs(picture - np.array(color)).max(axis=-1) <= 2).sum())


@pytest.mark.parametrize("simulations", [1, 7, 50, 800])
def test_the_part_that_is_drawn_is_a_tree_of_the_most_visited(simulations):
    tree = table(simulations)
    for rows, depth in ((14, 6), (4, 3)):
        marks = chosen(tree, 0, rows, depth)
        parents = [mark.parent for mark in marks]
        assert parents[0] == -1
        assert all(0 <= parent < i for i, parent in enumerate(parents) if i)
        assert max(mark.depth for mark in marks) <= depth
        leaves = sum(i not in parents for i in range(len(marks)))
        assert leaves <= rows
        shown = [mark for mark in marks if mark.node >= 0]
        assert len(shown) + sum(mark.hidden for mark in marks) == tree.roots[0]["nodes"]
        line = [mark.node for mark in marks if mark.principal and mark.node >= 0]
        assert line == tree.principal(0)[: depth + 1]
        by_node = {node.index: node for node in tree.nodes(0)}
        for mark in shown[1:]:
            node = by_node[mark.node]
            assert (mark.action, mark.visits, mark.value) == (node.action, node.visits, node.value)
            assert marks[mark.parent].node == node.parent
    if simulations == 800:
        counts = Counter(mark.parent for mark in chosen(tree, 0))
        fewest = min(mark.visits for mark in marks if mark.depth == 1)
        assert counts[0] == 4, "an action of the root is missing"
        assert fewest >= sorted(node.visits for node in tree.nodes(0) if node.depth == 1)[-2], "rows=4 keeps 2"


def test_ends_are_drawn_though_they_are_no_nodes():
    """X at 0 and 1 completes its row by 2, which ends the game and proves the win."""
    marks = chosen(game([0, 3, 1, 4]), 0)
    assert marks[0].proven
    assert marks[0].value == 1
    (win,) = (mark for mark in marks if mark.depth == 1 and mark.node < 0)
    assert (win.action, win.reward, win.proven, win.principal) == (2, 1, True, True)


def test_a_root_without_simulations_worth_drawing(tmp_path):
    tree = table(1)
    draw_tree(tree, tmp_path / "tree.png", MEANINGS)
    draw_line(tree, tmp_path / "line.png", MEANINGS)
    assert pixels(tmp_path / "tree.png", np.multiply(to_rgb(PRINCIPAL), 255)) > 100


def test_frames_are_those_of_the_nodes_that_are_drawn(tmp_path):
    _, tree = dots()
    asked = []

    def frames(states):
        asked.extend(states)
        return magenta(states)

    marks = chosen(tree, 0, rows=10)
    draw_tree(tree, tmp_path / "tree.png", MEANINGS, frames, title="dots")
    expected = [tree.state(0, mark.node) for mark in marks if mark.node >= 0]
    assert torch.equal(torch.stack(asked), torch.stack(expected))
    area = (0.8 * 140) ** 2
    assert pixels(tmp_path / "tree.png", MAGENTA) == pytest.approx(len(expected) * area, rel=0.12)

    asked.clear()
    draw_line(tree, tmp_path / "line.png", MEANINGS, frames, title="dots")
    assert torch.equal(torch.stack(asked), torch.stack([tree.state(0, node) for node in tree.principal(0)]))
    assert pixels(tmp_path / "line.png", MAGENTA) == pytest.approx(len(asked) * (1.4 * 140) ** 2, rel=0.05)


def test_another_root_is_another_tree(tmp_path):
    tree = table(20, roots=(3, 8))
    for b in (0, 1):
        draw_tree(tree, tmp_path / f"{b}.png", MEANINGS, b=b)
    assert (tmp_path / "0.png").read_bytes() != (tmp_path / "1.png").read_bytes()


def test_bars_stand_in_for_frames(tmp_path):
    """Six moves to the end of a won game, drawn with its ends."""
    tree = game([0, 1])
    for name, draw in (("tree", draw_tree), ("line", draw_line)):
        draw(tree, tmp_path / f"{name}.png", [str(action) for action in range(9)], title="X to move")
        assert Image.open(tmp_path / f"{name}.png").width > 500


def test_models_show_the_states_that_they_decode():
    model, tree = dots()
    frames = frames_of(model)
    shown = frames([tree.state(0, node) for node in range(5)])
    assert shown.shape == (5, 12, 12, 3)
    assert np.array_equal(shown[..., 1], torch.stack([tree.state(0, node)[-1] for node in range(5)]).numpy())
    assert frames_of(IdentityModel()) is None
