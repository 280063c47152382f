import json

import numpy as np
import pytest

from datamodules.environments.mazes import MAZES, MazeEnvironments
from modules.errors import UserError

UP, DOWN, LEFT, RIGHT = range(4)


def distance(moves: np.ndarray, start: int, goal: int) -> int:
    """The fewest moves, breadth first."""
    reached, steps = {start}, 0
    while goal not in reached:
        reached |= {int(after) for cell in reached for after in moves[cell]}
        steps += 1
    return steps


@pytest.mark.parametrize(("maze", "before", "after"), [("dyna", 14, 14), ("blocking", 10, 16), ("shortcut", 16, 10)])
def test_the_shortest_ways_are_the_books(maze, before, after):
    environment = MazeEnvironments(maze, 1)
    assert environment.num_cells == 54
    lengths = [distance(moves, environment.start, environment.goal) for moves in environment.moves]
    assert lengths == [before, after]
    assert environment.change_at == {"dyna": None, "blocking": 1000, "shortcut": 3000}[maze]


def test_walls_are_where_the_book_draws_them():
    drawing = np.array([list(row) for row in MAZES["dyna"].drawing.split()])
    walls = {(0, 7), (1, 2), (1, 7), (2, 2), (2, 7), (3, 2), (4, 5)}
    assert {(int(row), int(column)) for row, column in np.argwhere(drawing == "#")} == walls
    assert np.argwhere(drawing == "S").tolist() == [[2, 0]]
    assert np.argwhere(drawing == "G").tolist() == [[0, 8]]


def test_moves_stop_at_walls_and_edges():
    environment = MazeEnvironments("dyna", 4)
    environment.reset()
    observation = environment.step(np.array([UP, DOWN, LEFT, RIGHT])).observation
    assert observation[:, 0].tolist() == [9, 54 + 27, 108 + 18, 162 + 19]
    # Environment 3 stands left of the wall at (2, 2).
    observation = environment.step(np.array([LEFT, LEFT, UP, RIGHT])).observation
    assert observation[:, 0].tolist() == [9, 54 + 27, 108 + 9, 162 + 19]


def test_the_goal_earns_one_and_the_next_step_opens_an_episode():
    environment = MazeEnvironments("blocking", 2)
    first = environment.reset()
    assert first.dtype == np.float32
    assert first.tolist() == [[48], [48 + 54]]
    way = [RIGHT] * 5 + [UP] * 5
    for number, action in enumerate(way):
        after = environment.step(np.array([action, DOWN]))
        last = number == len(way) - 1
        assert after.reward.tolist() == [float(last), 0]
        assert after.terminated.tolist() == [last, False]
        assert not after.truncated.any()
    assert after.observation[0, 0] == 8
    after = environment.step(np.array([LEFT, DOWN]))
    assert after.observation[0, 0] == 48
    assert (after.reward[0], after.terminated[0]) == (0, False)
    assert environment.clock.tolist() == [10, 11], "opening an episode is no step"


def test_a_maze_changes_by_its_own_clock():
    environment = MazeEnvironments("blocking", 2, change_at=11)
    environment.reset()
    for action in [RIGHT] * 5 + [UP] * 5 + [DOWN]:
        environment.step(np.array([action, RIGHT]))
    # Environment 0 took 10 steps and opened an episode, environment 1 took 11. The gap at the right is open for one
    # step more.
    environment.cell[:] = 44
    assert environment.step(np.array([UP, UP])).observation[:, 0].tolist() == [35, 44 + 54]
    # Where environment 0 stands is a wall now, from which it can walk away.
    assert environment.step(np.array([UP, UP])).observation[:, 0].tolist() == [26, 44 + 54]
    environment.cell[:] = 26
    assert environment.step(np.array([DOWN, DOWN])).observation[:, 0].tolist() == [26, 26 + 54]
    environment.reset()
    assert environment.clock.tolist() == [13, 14], "a reset does not put the walls back"


def test_episodes_are_cut_at_the_limit():
    environment = MazeEnvironments("shortcut", 1, max_steps=3)
    environment.reset()
    for _ in range(2):
        cut = [environment.step(np.array([DOWN])).truncated[0] for _ in range(4)]
        assert cut == [False, False, True, False]
    assert environment.clock.tolist() == [6]


def test_the_limit_does_not_cut_what_ends():
    environment = MazeEnvironments("blocking", 1, max_steps=10)
    environment.reset()
    for action in [RIGHT] * 5 + [UP] * 5:
        after = environment.step(np.array([action]))
    assert (after.terminated[0], after.truncated[0]) == (True, False)


def test_the_description_is_plain_data():
    description = MazeEnvironments("blocking", 2).description
    assert json.loads(json.dumps(description)) == description
    assert description["protocol"] == {"change_at": 1000, "max_steps": None}


def test_mistakes_are_told():
    with pytest.raises(UserError, match=r"unknown maze 'Dynamaze': expected one of dyna, .* nearest is dyna"):
        MazeEnvironments("Dynamaze", 1)
    with pytest.raises(UserError, match="the maze dyna does not change"):
        MazeEnvironments("dyna", 1, change_at=5)
    with pytest.raises(UserError, match="max_steps must be at least 1: got 0"):
        MazeEnvironments("dyna", 1, max_steps=0)
