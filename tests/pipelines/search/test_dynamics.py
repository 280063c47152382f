"""True rules as dynamics: the emulator and board games."""

import dataclasses

import numpy as np
import pytest

from datamodules.environments.atari import PROTOCOLS
from datamodules.environments.emulator import AtariEmulators
from modules.errors import UserError
from pipelines.search.dynamics import EmulatorDynamics, GameDynamics
from pipelines.search.evaluators import Rollouts, Uniform
from pipelines.search.random_actions import random_actions
from pipelines.search.rules import Stop, Uct
from pipelines.search.search import Search

PLAIN = dataclasses.replace(PROTOCOLS["atari100k"], noop_max=0)
STICKY = dataclasses.replace(PLAIN, repeat_action_probability=0.5, name="sticky")


@pytest.fixture(scope="module")
def breakout():
    """Two games whose ball is on its way."""
    environment = AtariEmulators("breakout", 2, PLAIN, variant="evaluation")
    environment.reset()
    for action in (1, 0, 0, 0):
        environment.step(np.array([action, action]))
    return environment


def test_a_step_is_the_games_own_and_changes_no_clone(breakout):
    dynamics, roots = EmulatorDynamics(breakout, look=True), breakout.clone()
    before = roots[0].frames
    states = roots
    for action in (2, 3, 3, 0):
        states, reward, continuation = dynamics.step(states, np.array([action, 0]))
        after = breakout.step(np.array([action, 0]))
        assert reward.tolist() == after.reward.tolist()
        assert continuation.tolist() == [1, 1]
        assert np.array_equal(breakout.observe(states), after.observation)
    assert roots[0].frames == before
    assert EmulatorDynamics(breakout).step(roots, np.array([0, 0])).state[0].screen is None
    breakout.restore(roots)


def test_a_lost_life_ends_what_is_planned_for_if_told(breakout):
    for ends, price in [(False, 0.0), (True, -5.0)]:
        dynamics = EmulatorDynamics(breakout, life_loss_ends=ends, life_loss_reward=price)
        states, earned, over = breakout.clone(), np.zeros(2), np.zeros(2, bool)
        for _ in range(60):
            states, reward, continuation = dynamics.step(states, np.array([3, 3]))
            earned += reward.numpy()
            over |= continuation.numpy() == 0
        assert over.all() == ends
        assert earned.tolist() == [1 + price] * 2, "a brick on the way; an ended game earns nothing more"
        assert all(state.closed == ends for state in states)
        rollouts = dynamics.play_out(states, 30, 1.0, np.random.default_rng(0))
        if ends:
            assert rollouts.tolist() == [0, 0]


def test_the_end_of_the_game_has_continuation_0():
    limited = dataclasses.replace(PLAIN, evaluation_max_frames=10)
    environment = AtariEmulators("pong", 1, limited, variant="evaluation")
    environment.reset()
    dynamics, states = EmulatorDynamics(environment), environment.clone()
    ends = []
    for _ in range(4):
        states, _, continuation = dynamics.step(states, np.array([0]))
        ends.append(continuation.item())
    assert ends == [1, 1, 0, 0]
    assert dynamics.play_out(states, None, 1.0, np.random.default_rng(0)).tolist() == [0]


@pytest.mark.parametrize("persistence", [None, 2.0])
def test_playing_out_earns_what_its_steps_earn(breakout, persistence):
    dynamics = EmulatorDynamics(breakout, life_loss_ends=True, life_loss_reward=-1.0, persistence=persistence)
    roots = breakout.clone()
    found = dynamics.play_out(roots[[0, 0, 1]], 45, 0.9, np.random.default_rng(4))
    draws, expected = np.random.default_rng(4), []
    for root in roots[[0, 0, 1]]:
        states, total, weight = np.array([root], object), 0.0, 1.0
        for _, action in zip(range(45), random_actions(4, draws, persistence), strict=False):
            states, reward, continuation = dynamics.step(states, np.array([action]))
            total, weight = total + weight * reward.item(), weight * 0.9 * continuation.item()
            if not weight:
                break
        expected.append(total)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (found != 0).any()


def test_held_actions_last_longer():
    held = [action for _, action in zip(range(4000), random_actions(3, np.random.default_rng(0), 1.5), strict=False)]
    free = [action for _, action in zip(range(4000), random_actions(3, np.random.default_rng(0)), strict=False)]
    changes = [np.count_nonzero(np.diff(actions)) for actions in (held, free)]
    assert changes[0] < 0.3 * changes[1]
    assert set(held) == set(free) == {0, 1, 2}


def test_a_sticky_outcome_is_drawn_once_for_an_edge():
    environment = AtariEmulators("pong", 1, STICKY, variant="evaluation")
    environment.reset()
    for _ in range(20):
        environment.step(np.array([0]))
    dynamics = EmulatorDynamics(environment, look=True, generator=np.random.default_rng(1))
    drawn = [environment.observe(dynamics.step(environment.clone(), np.array([2])).state).tobytes() for _ in range(12)]
    assert len(set(drawn)) > 1
    search = Search(Uct(), Stop(12))
    found = search.run(environment.clone(), dynamics, Uniform(dynamics))
    states = {id(found.tree.state(0, node.index)) for node in found.tree.nodes(0)}
    assert len(states) == len(found.tree.nodes(0)) == 13


def test_chance_is_refused_where_exactness_is_asked():
    environment = AtariEmulators("pong", 1, "machado2018", variant="evaluation")
    with pytest.raises(UserError, match=r"machado2018 repeats actions with probability 0.25: .* atari100k"):
        EmulatorDynamics(environment, exact=True)
    with pytest.raises(UserError, match="persistence"):
        EmulatorDynamics(environment, persistence=1.0)
    assert EmulatorDynamics(AtariEmulators("pong", 1, PLAIN), exact=True).deterministic


# Board games.


def array(*states):
    found = np.empty(len(states), object)
    found[:] = states
    return found


def test_whites_win_in_chess_is_the_movers():
    # Fool's mate by Black, who is player 0, and scholar's mate by White, who is player 1.
    chess = GameDynamics("chess")
    for moves, winner in [("f3 e5 g4 Qh4#", 0), ("e4 e5 Qh5 Nc6 Bc4 Nf6 Qxf7#", 1)]:
        state = chess.game.new_initial_state()
        assert state.current_player() == 1
        for move in moves.split():
            names = {state.action_to_string(action): action for action in state.legal_actions()}
            before, action = state.clone(), names.get(move, names.get(move.rstrip("#")))
            mover = state.current_player()
            step = chess.step(array(state), np.array([action]))
            state = step.state[0]
        assert mover == winner
        assert (step.reward.item(), step.continuation.item()) == (1, 0)
        assert not before.is_terminal(), "a position is never written to"
        assert chess.legal_actions(array(state)).tolist() == [[-1]]


def test_legal_actions_are_padded():
    game = GameDynamics("tic_tac_toe")
    start = game.game.new_initial_state()
    later = start.child(4).child(0)
    assert game.legal_actions(array(start, later)).tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7, 8],
        [1, 2, 3, 5, 6, 7, 8, -1, -1],
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tic_tac_to", "unknown game 'tic_tac_to'.* tic_tac_toe"),
        ("go(board_siz=9)", "go.* cannot be loaded"),
        ("kuhn_poker", "expected no chance and perfect information"),
        ("backgammon", "no chance"),
        ("cliff_walking", "two players"),
    ],
)
def test_games_that_cannot_be_searched_are_refused(name, words):
    with pytest.raises(UserError, match=words) as error:
        GameDynamics(name)
    assert "\n" not in str(error.value)


def test_a_root_that_is_over_is_refused():
    game = GameDynamics("tic_tac_toe")
    state = game.game.new_initial_state()
    for action in (0, 3, 1, 4, 2):
        state.apply_action(action)
    for evaluate in (Uniform(game), Rollouts(game, players=2)):
        with pytest.raises(UserError, match="root 0 has no legal action"):
            Search(Uct(), players=2, discount=1).run(array(state), game, evaluate)


def test_a_mask_without_actions_is_refused(breakout):
    dynamics = EmulatorDynamics(breakout)
    legal = np.array([[True] * 4, [False] * 4])
    with pytest.raises(UserError, match="root 1 has no legal action"):
        Search(Uct(), Stop(2)).run(breakout.clone(), dynamics, Uniform(dynamics), legal=legal)
