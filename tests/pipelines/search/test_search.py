"""What a search does, simulation by simulation."""

import math
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modules.errors import UserError
from modules.world_model import Step
from pipelines.search import compiled
from pipelines.search.contract import Evaluation
from pipelines.search.rules import Dirichlet, Gumbel, Puct, Stop, Uct
from pipelines.search.search import Search
from tests.pipelines.search.worlds import Game, TableWorld

PROJECT = Path(__file__).resolve().parents[3]


def slow_puct(world, root, simulations, discount):
    """MuZero's search in plain Python, a dictionary per node: returns the root's visits."""
    f = np.float32

    def node(state):
        logits = world.logits[state].double().numpy()
        shifted = f(logits).astype(float) - logits.max()
        prior = np.exp(shifted - math.log(sum(math.exp(x) for x in shifted))).astype(f)
        value = f(world.value[state])
        return {"state": state, "N": 1, "V": value, "P": prior, "edges": [[0, f(0), None] for _ in prior]}

    top, low, high = node(root), math.inf, -math.inf
    for _ in range(simulations):
        at, path, child = top, [], top
        while child is not None:
            at = child
            scale = 1 / max(float(high) - float(low), 0.01) if low <= high else 1.0
            factor = math.sqrt(at["N"]) * (1.25 + math.log((at["N"] + 19652.0 + 1) / 19652.0))
            scores = []
            for (n, q, _), p in zip(at["edges"], at["P"], strict=True):
                scores.append(((float(q) - float(low)) * scale if n else 0.0) + factor * float(p) / (1 + n))
            action = int(np.argmax(scores))
            path.append((at, action))
            child = at["edges"][action][2]
            if child == "over":
                break
        edge = at["edges"][action]
        if world.continuation[at["state"], action] == 0:
            edge[2], value = "over", 0.0
        else:
            edge[2] = node(int(world.next[at["state"], action]))
            value = float(edge[2]["V"])
        for at, action in reversed(path):
            edge, s = at["edges"][action], at["state"]
            value = float(f(world.reward[s, action])) + float(f(discount * world.continuation[s, action])) * value
            edge[0] += 1
            edge[1] = f(float(edge[1]) + (value - float(edge[1])) / edge[0])
            low, high = min(low, edge[1]), max(high, edge[1])
            at["N"] += 1
            at["V"] = f(float(at["V"]) + (value - float(at["V"])) / at["N"])
    return [edge[0] for edge in top["edges"]], top["V"]


@pytest.mark.parametrize("seed", range(4))
def test_visits_equal_those_of_a_slow_search_to_the_last(seed):
    world = TableWorld(num_states=30, num_actions=5, seed=seed)
    result = Search(Puct(), Stop(200), 0.97).run(torch.arange(6), world, world.evaluate)
    for b in range(6):
        visits, value = slow_puct(world, b, 200, 0.97)
        assert result.visits[b].tolist() == visits
        assert result.value[b] == value


@pytest.mark.parametrize("rule", [Uct(), Puct(), Gumbel()])
def test_one_step_and_one_evaluation_per_simulation(rule):
    world = TableWorld(end=0)
    result = Search(rule, Stop(37)).run(torch.arange(5), world, world.evaluate)
    assert (world.steps, world.evaluations) == (37, 38)
    assert (result.simulations == 37).all()
    assert (result.visits.sum(axis=1) == 37).all()

    world = TableWorld(end=0)

    def expand(states, actions):
        step = world.step(states, actions)
        return step, world.evaluate(step.state)

    again = Search(rule, Stop(37)).run(
        torch.arange(5), None, world.evaluate, expand=expand, generator=np.random.default_rng(0)
    )
    assert (world.steps, world.evaluations) == (37, 38)
    assert (again.visits.sum(axis=1) == 37).all()


@pytest.mark.parametrize("rule", [Puct(), Gumbel(scale=0)])
def test_a_fresh_node_takes_its_highest_prior(rule):
    world = TableWorld(num_actions=6, end=0)
    result = Search(rule, Stop(2)).run(torch.arange(8), world, world.evaluate)
    for b in range(8):
        first = min(result.tree.nodes(b)[1:], key=lambda node: node.index)
        assert first.action == world.logits[b].argmax()
    single = Search(Puct(), Stop(30)).run(torch.arange(8), world, world.evaluate).tree
    for b in range(8):
        for node in single.nodes(b):
            if node.visits == 2:
                visited = single.edges(b, node.index)
                state = single.state(b, node.index)
                assert visited["action"][visited["visits"] > 0] == [world.logits[state].argmax()]


class Corridor:
    """One action; the second step is worth 5 and the last."""

    def step(self, states, actions):
        return Step(states + 1, 5.0 * (states == 1), 1.0 - (states == 1).float())

    def evaluate(self, states):
        return Evaluation(torch.zeros(len(states), 1), torch.full((len(states),), 7.0))


def test_what_has_ended_backs_up_again_without_the_model():
    corridor = Corridor()
    calls = []
    corridor.step, step = lambda *a: (calls.append(1), step(*a))[1], corridor.step
    result = Search(Puct(), Stop(10), discount=0.5).run(torch.zeros(1, dtype=torch.int64), corridor, corridor.evaluate)
    assert len(calls) == 2
    assert result.visits[0, 0] == 10
    assert len(result.tree.nodes(0)) == 2
    # The first simulation is worth 0.5 x 7, the other nine 0.5 x 5; the root's own value is 7.
    np.testing.assert_allclose(result.q[0, 0], (0.5 * 7 + 9 * 0.5 * 5) / 10, rtol=1e-6)
    np.testing.assert_allclose(result.value[0], (7 + 0.5 * 7 + 9 * 0.5 * 5) / 11, rtol=1e-6)
    assert result.max_depth[0] == 2


def test_a_discount_is_its_own_or_what_it_searches_with_has_learned_by():
    policy, model = SimpleNamespace(discount=0.5), SimpleNamespace(discount=0.7)
    assert Search(discount=0.9).discounting_as(policy, model).discount == 0.9
    assert Search().discounting_as(policy, model).discount == 0.5
    assert Search(players=2).discounting_as(SimpleNamespace(), model).discount == 0.7
    assert Search().discounting_as(SimpleNamespace()).discount == 0.997
    corridor = Corridor()
    root = torch.zeros(1, dtype=torch.int64)
    plain, told = (
        Search(Puct(), Stop(10), discount).run(root, corridor, corridor.evaluate).value for discount in (None, 0.997)
    )
    assert np.array_equal(plain, told)


def test_a_continuation_above_0_is_a_part_of_the_discount():
    corridor = Corridor()
    corridor.step = lambda states, actions: Step(states + 1, torch.zeros(1), torch.full((1,), 1e-6))
    result = Search(Puct(), Stop(1), discount=0.5).run(torch.zeros(1, dtype=torch.int64), corridor, corridor.evaluate)
    assert len(result.tree.nodes(0)) == 2
    np.testing.assert_allclose(result.q[0, 0], 1e-6 * 0.5 * 7, rtol=1e-5)


def test_the_other_players_value_counts_against_the_mover():
    corridor = Corridor()
    search = Search(Puct(), Stop(1), discount=0.5, players=2)
    result = search.run(torch.zeros(1, dtype=torch.int64), corridor, corridor.evaluate)
    np.testing.assert_allclose(result.q[0, 0], -0.5 * 7)
    result = Search(Puct(), Stop(2), discount=0.5, players=2).run(
        torch.zeros(1, dtype=torch.int64), corridor, corridor.evaluate
    )
    np.testing.assert_allclose(result.q[0, 0], (-0.5 * 7 - 0.5 * 5) / 2)


@pytest.mark.parametrize("rule", [Uct(), Puct(first_visit="mean"), Gumbel()])
def test_parallel_loops_find_what_serial_ones_do(rule, monkeypatch):
    results = []
    for threads in (1, 2):
        world = TableWorld(num_states=40, num_actions=5)
        monkeypatch.setattr("pipelines.search.search.threads_for", lambda batch, n=threads: n)
        search = Search(rule, Stop(60), noise=None if isinstance(rule, Gumbel) else Dirichlet())
        results.append(search.run(torch.arange(40), world, world.evaluate, generator=np.random.default_rng(1)))
    one, two = results
    for name in ("visits", "q", "prior", "policy", "value", "action", "depth"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_parallel_loops_leave_torch_its_threads():
    """In a process of its own: numba starts its threads once."""
    code = """
        import numba, torch
        from pipelines.search import search
        from pipelines.search.rules import Puct, Stop
        from tests.pipelines.search.worlds import TableWorld
        torch.set_num_threads(1)
        search.threads_for = lambda batch: 2
        world = TableWorld(num_states=40, num_actions=5)
        for _ in range(2):
            search.Search(Puct(), Stop(5)).run(torch.arange(40), world, world.evaluate)
        print(torch.get_num_threads(), numba.get_num_threads())
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    outcome = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT)
    assert outcome.stdout.split() == ["1", "2"], outcome.stderr


def test_states_of_any_type_stay_what_they_are():
    corridor = Corridor()
    corridor.evaluate = lambda states: Evaluation(torch.zeros(len(states), 2), torch.zeros(len(states)))

    def step(states, actions):
        assert states.dtype == torch.uint8
        assert states.shape == (3, 2, 4)
        return Step(states + actions[:, None, None].to(torch.uint8) + 1, torch.zeros(3), torch.ones(3))

    corridor.step = step
    result = Search(Puct(), Stop(20)).run(torch.zeros(3, 2, 4, dtype=torch.uint8), corridor, corridor.evaluate)
    for node in result.tree.nodes(1)[1:]:
        parent = result.tree.state(1, node.parent)
        assert (result.tree.state(1, node.index) == parent + node.action + 1).all()


# Stopping.


def test_a_decided_root_stops_and_idles():
    world = TableWorld(end=0)
    world.logits[0, 2] = 30
    result = Search(Puct(first_visit="zero"), Stop(100, decided=True)).run(torch.arange(4), world, world.evaluate)
    full = Search(Puct(), Stop(100)).run(torch.arange(4), world, world.evaluate)
    assert result.simulations[0] < 60
    assert (result.action == full.action).all()
    assert (result.visits.sum(axis=1) == result.simulations).all()


def test_a_root_with_one_action_is_decided():
    corridor = Corridor()
    search = Search(Puct(), Stop(100, decided=True))
    result = search.run(torch.zeros(2, dtype=torch.int64), corridor, corridor.evaluate)
    assert (result.simulations == 0).all()
    assert (result.action == 0).all()


def test_a_value_that_stands_still_stops():
    corridor = Corridor()
    corridor.step = lambda states, actions: Step(states + 1, 0 * states, torch.ones(len(states)))
    search = Search(Puct(), Stop(1000, converged=1e-3), discount=1)
    result = search.run(torch.zeros(1, dtype=torch.int64), corridor, corridor.evaluate)
    assert result.simulations[0] == compiled.WINDOW
    world = TableWorld(seed=2)
    tight, loose = (
        Search(Uct(), Stop(5000, converged=c)).run(torch.arange(3), world, world.evaluate) for c in (1e-3, 3e-2)
    )
    assert (loose.simulations < tight.simulations).all()


def test_the_clock_stops_alone_and_together():
    world = TableWorld(end=0)
    result = Search(Uct(), Stop(simulations=None, seconds=0.1)).run(torch.arange(3), world, world.evaluate)
    assert result.simulations.min() > 70  # beyond the room made at first
    assert (result.visits.sum(axis=1) == result.simulations).all()
    result = Search(Uct(), Stop(10, seconds=30)).run(torch.arange(3), world, world.evaluate)
    assert (result.simulations == 10).all()
    # Not one simulation more where the mistake of the clock would be to wait for all.
    assert Search(Uct(), Stop(10**6, seconds=0.05)).run(torch.arange(1), world, world.evaluate).simulations[0] < 10**5


# Mistakes.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Search(stop=Stop(0)), "at least 1 simulation"),
        (lambda: Search(stop=Stop(None)), "needs an end"),
        (lambda: Search(stop=Stop(None, seconds=0)), "seconds must be more than 0"),
        (lambda: Search(Gumbel(), Stop(None, seconds=1)), "Gumbel .* set stop.simulations"),
        (lambda: Search(Gumbel(), noise=Dirichlet()), "own noise"),
        (lambda: Search(players=3), "players is 3"),
        (lambda: Search(bounds=(1, -1)), "bounds"),
        (lambda: Search(discount=1.5), "search.discount must be from 0 to 1: got 1.5"),
        (lambda: Search(discount=-1), "search.discount must be from 0 to 1: got -1"),
        (lambda: Search(max_depth=0), "max_depth must be at least 1: got 0"),
    ],
)
def test_settings_that_cannot_be_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_root_without_legal_actions_is_named():
    world = TableWorld()
    legal = np.ones((3, 4), bool)
    legal[1] = False
    with pytest.raises(UserError, match="root 1 has no legal action"):
        Search().run(torch.arange(3), world, world.evaluate, legal=legal)
    game = Game("tic_tac_toe")
    state = game.game.new_initial_state()
    for action in (0, 3, 1, 4, 2):
        state.apply_action(action)
    with pytest.raises(UserError, match="root 0 has no legal action"):
        Search(players=2).run(game.roots([state]), game, game.evaluate)


def test_a_mask_of_another_size_is_named():
    world = TableWorld()
    with pytest.raises(UserError, match=r"legal has 2 actions, but the evaluation names action 3"):
        Search().run(torch.arange(3), world, world.evaluate, legal=np.ones((3, 2), bool))
    with pytest.raises(UserError, match=r"legal has the shape \(2, 4\)"):
        Search().run(torch.arange(3), world, world.evaluate, legal=np.ones((2, 4), bool))


@pytest.mark.parametrize("output", ["logits", "value", "reward", "continuation"])
def test_a_nan_is_named_by_output_and_simulation(output):
    world = TableWorld(end=0)
    step, evaluate = world.step, world.evaluate

    def broken(values):
        values = values.clone().float()
        if world.steps == 5:
            values[2] = torch.nan
        return values

    def nan_step(states, actions):
        out = step(states, actions)
        return out._replace(**{output: broken(getattr(out, output))}) if output in out._fields else out

    def nan_evaluate(states):
        out = evaluate(states)
        return out._replace(**{output: broken(getattr(out, output))}) if output in out._fields else out

    world.step = nan_step
    with pytest.raises(UserError, match=f"{output} of root 2 in simulation 5 is NaN"):
        Search().run(torch.arange(4), world, nan_evaluate)


def test_a_nan_at_the_roots_is_named():
    world = TableWorld()
    world.value[1] = torch.nan
    with pytest.raises(UserError, match="value of root 1 in the evaluation of the roots is NaN"):
        Search().run(torch.arange(4), world, world.evaluate)


def test_dense_actions_that_do_not_fit_in_memory_are_refused():
    def evaluate(states):
        return Evaluation(torch.zeros(len(states), 4672), torch.zeros(len(states)))

    def never(states, actions):
        raise AssertionError

    search = Search(stop=Stop(100_000))
    with pytest.raises(UserError, match=r"GiB are free: return the legal actions from evaluate") as caught:
        search.run(torch.zeros(256, 4), None, evaluate, expand=never)
    assert "\n" not in str(caught.value)
