"""Planning in the emulator: what UCT scores by simulations, beside random play.

    python benchmarks/emulator_uct.py [--simulations 10 25 100] [--decisions 300] [--depth 10]

The raw scores of the first decisions of games of Breakout, Ms. Pac-Man and Freeway, by the rules of the protocol
atari100k in evaluation; three games, one per seed, are searched as one batch. UCT has random rollouts at its leaves,
keeps its tree between moves, and plans for a lost life as for an end that costs `life_loss_reward`, which no score
counts. "scores" are those of the games, "score" is their mean; "random" is the mean of 30 games of uniform play.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import report
import smoke
import torch

from datamodules.environments.emulator import AtariEmulators
from pipelines.acting.actors import RandomActor
from pipelines.acting.exploration import Exploration
from pipelines.acting.rules_actor import RulesActor
from pipelines.evaluation.episodes import play
from pipelines.search.dynamics import EmulatorDynamics
from pipelines.search.evaluators import Rollouts
from pipelines.search.rules import Stop, Uct
from pipelines.search.search import Search

GAMES = ("breakout", "ms_pacman", "freeway")
SEEDS, SEED = 3, 0


def score(environment: AtariEmulators, actor: Any, decisions: int) -> dict[str, Any]:
    """Return the scores after so many decisions, or at the end of a game that is shorter."""
    start = time.process_time()
    returns = np.array([episode["return"] for episode in play(environment, actor, decisions)])
    return {
        "score": round(float(returns.mean()), 2),
        "standard_error": round(float(returns.std(ddof=1) / len(returns) ** 0.5), 2),
        "scores": returns.tolist() if len(returns) == SEEDS else len(returns),
        "cpu_seconds": round(time.process_time() - start, 1),
    }


def plan(game: str, simulations: int, options: argparse.Namespace) -> dict[str, Any]:
    environment = AtariEmulators(game, SEEDS, variant="evaluation", seed=SEED)
    dynamics = EmulatorDynamics(
        environment, life_loss_ends=True, life_loss_reward=options.life_loss_reward, persistence=options.persistence
    )
    search = Search(Uct(options.exploration), Stop(simulations), options.discount)
    rollouts = Rollouts(dynamics, options.depth, options.discount)
    draws = np.random.default_rng(SEED)
    exploration = Exploration(persistence=options.persistence, temperatures=(0.0,))
    actor = RulesActor(dynamics, search, rollouts, draws, exploration=exploration)
    return score(environment, actor, options.decisions)


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--games", nargs="+", default=GAMES, help="games that are played")
    parser.add_argument(
        "--simulations", nargs="+", type=int, default=[10, 25, 100], smoke=[2], help="simulations per decision"
    )
    parser.add_argument("--decisions", type=int, default=300, smoke=3, help="decisions of a game")
    parser.add_argument("--random_games", type=int, default=30, smoke=4, help="games of uniformly random play")
    parser.add_argument("--depth", type=int, default=10, smoke=2, help="decisions of a rollout")
    parser.add_argument("--exploration", type=float, default=0.7, help="weight of UCT's exploration term")
    parser.add_argument("--discount", type=float, default=0.99, help="discount of planning")
    parser.add_argument(
        "--life_loss_reward", type=float, default=-1.0, help="reward of a lost life, for planning alone"
    )
    parser.add_argument(
        "--persistence", type=float, default=None, help="decisions for which rollouts hold an action, on average"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = {name: value for name, value in vars(options).items() if name not in ("smoke", "out", "images")}
    figures: dict[str, Any] = {"settings": settings | {"protocol": "atari100k", "frame_skip": 4, "seeds": SEEDS}}
    for game in options.games:
        environment = AtariEmulators(game, options.random_games, variant="evaluation", seed=SEED)
        random = RandomActor(environment.num_actions, np.random.default_rng(SEED))
        figures[game] = {"random": score(environment, random, options.decisions)}
        for simulations in options.simulations:
            figures[game][str(simulations)] = plan(game, simulations, options)
            report.write("emulator_uct", figures, options, echo=False)
            print(game, simulations, figures[game][str(simulations)], flush=True)
    report.write("emulator_uct", figures, options)


if __name__ == "__main__":
    main()
