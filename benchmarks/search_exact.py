"""The search beside exact answers: tic-tac-toe, the ends of connect four, and value iteration.

    python benchmarks/search_exact.py [--positions 500] [--simulations 2000]

Every position of tic-tac-toe that is not over, and random positions of connect four with 12 empty cells or fewer, are
solved exactly over open_spiel's states, and searched with uniform priors and the value 0: "kept" is the share of
chosen moves that keep the position's exact value, "proven" the share of roots that the search proved, "proven_wrong"
the roots it proved wrongly. "random_kept" is the share of legal moves that keep it. Random decision processes of 12
states are solved by value iteration: "error" is the mean distance of root values from it, "regret" what the chosen
action loses, by simulations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import report
import smoke
import torch

from modules.world_model import Step
from pipelines.search.contract import Evaluation
from pipelines.search.dynamics import GameDynamics
from pipelines.search.evaluators import Uniform
from pipelines.search.rules import Gumbel, Puct, Rule, Stop, Uct
from pipelines.search.search import Search

BATCH = 512
DISCOUNT, WORLDS, STATES, ACTIONS = 0.5, 20, 12, 2
RULES: dict[str, Rule] = {"uct": Uct(), "puct": Puct(), "gumbel": Gumbel(c_scale=1, scale=0)}


def value_of_move(state: Any, action: int, value: Callable[[Any], float]) -> float:
    """Return the exact value of a move for whoever makes it."""
    child = state.child(action)
    return child.returns()[state.current_player()] if child.is_terminal() else -value(child)


def solver() -> Callable[[Any], float]:
    """Return a function that solves positions, and remembers all that it has seen on the way."""
    known: dict[str, float] = {}

    def value(state: Any) -> float:
        key = str(state)
        if key not in known:
            best = -1.0
            for action in state.legal_actions():
                best = max(best, value_of_move(state, action, value))
                if best == 1:
                    break
            known[key] = best
        return known[key]

    return value


def all_positions(game: Any) -> list[Any]:
    """Return every position that can be reached and is not over, once."""
    start = game.new_initial_state()
    found, queue = {str(start): start}, [start]
    for state in queue:
        for action in state.legal_actions():
            child = state.child(action)
            if not child.is_terminal() and str(child) not in found:
                found[str(child)] = child
                queue.append(child)
    return list(found.values())


def late_positions(game: Any, count: int, most_empty: int) -> list[Any]:
    """Return different positions of random games, with `most_empty` cells free or fewer, that leave a choice."""
    generator = np.random.default_rng(0)
    found: dict[str, Any] = {}
    while len(found) < count:
        state, plies = game.new_initial_state(), game.max_game_length() - generator.integers(4, most_empty + 1)
        while not state.is_terminal() and state.move_number() < plies:
            state.apply_action(int(generator.choice(state.legal_actions())))
        if not state.is_terminal() and len(state.legal_actions()) > 1:
            found[str(state)] = state
    return list(found.values())


def compare(
    rules: GameDynamics, states: Sequence[Any], simulations: int, rule: Rule, value: Callable[[Any], float]
) -> dict[str, Any]:
    """Search positions in batches and return how the search did beside their exact values."""
    search = Search(rule, Stop(simulations), discount=1, players=2, bounds=(-1, 1))
    kept, proven, wrong, chance, used, seconds = 0, 0, 0, 0.0, 0, 0.0
    for first in range(0, len(states), BATCH):
        roots = np.empty(len(states[first : first + BATCH]), object)
        roots[:] = states[first : first + BATCH]
        begin = time.perf_counter()
        result = search.run(roots, rules, Uniform(rules))
        seconds += time.perf_counter() - begin
        used += int(result.simulations.sum())
        for b, state in enumerate(roots):
            exact = value(state)
            moves = {action: value_of_move(state, action, value) for action in state.legal_actions()}
            kept += int(moves[int(result.action[b])] == exact)
            chance += float(np.mean([move == exact for move in moves.values()]))
            proven += int(result.proven[b])
            wrong += int(result.proven[b] and result.value[b] != exact)
    count = len(states)
    return {
        "positions": count,
        "kept": round(kept / count, 4),
        "missed": count - kept,
        "random_kept": round(chance / count, 3),
        "proven": round(proven / count, 4),
        "proven_wrong": wrong,
        "simulations_per_position": round(used / count, 1),
        "simulations_per_second": round(used / seconds),
    }


class RandomWorld:
    """A random decision process whose evaluations are random too, and its values by value iteration."""

    def __init__(self, seed: int) -> None:
        generator, shape = torch.Generator().manual_seed(seed), (STATES, ACTIONS)
        self.has_successor = torch.randint(STATES, shape, generator=generator)
        self.reward = torch.rand(shape, generator=generator)
        self.continuation = (torch.rand(shape, generator=generator) > 0.15).float()
        self.logits, self.value = torch.randn(shape, generator=generator), torch.rand(STATES, generator=generator)
        q = torch.zeros(shape, dtype=torch.float64)
        for _ in range(100):
            q = self.reward + DISCOUNT * self.continuation * q.max(dim=1).values[self.has_successor]
        self.q = q.numpy()

    def step(self, states: torch.Tensor, actions: torch.Tensor) -> Step:
        at = (states, actions)
        return Step(self.has_successor[at], self.reward[at], self.continuation[at])

    def evaluate(self, states: torch.Tensor) -> Evaluation:
        return Evaluation(self.logits[states], self.value[states], None)


def converge(rule: Rule, simulations: int) -> dict[str, float]:
    """Return the mean error of root values and the mean regret of moves, over all states of random worlds."""
    error, regret = [], []
    for seed in range(WORLDS):
        world, roots = RandomWorld(seed), torch.arange(STATES)
        result = Search(rule, Stop(simulations), DISCOUNT).run(roots, world, world.evaluate)
        best = world.q.max(axis=1)
        error.append(np.abs(result.value - best).mean())
        regret.append((best - world.q[np.arange(STATES), result.action]).mean())
    return {"error": round(float(np.mean(error)), 4), "regret": round(float(np.mean(regret)), 4)}


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--positions", type=int, default=500, smoke=10, help="positions of connect four")
    parser.add_argument("--simulations", type=int, default=2000, smoke=4, help="simulations per position")
    parser.add_argument(
        "--converge",
        type=int,
        nargs="+",
        default=[10, 100, 1000, 5000],
        smoke=[10],
        help="simulations in random worlds",
    )
    options = parser.parse_args()
    figures: dict[str, Any] = {"simulations": options.simulations}
    tic_tac_toe, connect_four = GameDynamics("tic_tac_toe"), GameDynamics("connect_four")
    positions = {
        tic_tac_toe: all_positions(tic_tac_toe.game),
        connect_four: late_positions(connect_four.game, options.positions, most_empty=12),
    }
    for rules, states in positions.items():
        value = solver()
        figures[rules.name] = {
            key: compare(rules, states, options.simulations, rule, value) for key, rule in RULES.items()
        }
    figures["value_iteration"] = {
        key: {str(simulations): converge(rule, simulations) for simulations in options.converge}
        for key, rule in RULES.items()
        if not isinstance(rule, Gumbel)
    }
    report.write("search_exact", figures, options)


if __name__ == "__main__":
    main()
