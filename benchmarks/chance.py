"""What games give without learning: uniform random play, random play that holds its actions, the best constant action.

    python benchmarks/chance.py [--games UpNDown,DemonAttack,Krull,Assault,RoadRunner,KungFuMaster,Freeway]

Every action is held for 10 whole episodes; the one with the highest mean is then held for 30 episodes with other seeds,
so that it was not chosen by what it is judged by. The protocol is that of evaluations, atari100k. The result file keeps
the games that were not asked for; scores depend on nothing but the game and the protocol.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import report
import smoke

from datamodules.acting import Actor
from datamodules.environments.atari import AtariEnvironments, canonical_game
from pipelines.acting.actors import ConstantActor, RandomActor
from pipelines.acting.exploration import Exploration
from pipelines.evaluation.episodes import play

GAMES = "UpNDown,DemonAttack,Krull,Assault,RoadRunner,KungFuMaster,Freeway,Boxing,Pong,Breakout"
PERSISTENCE = 2.0
"""Exponent of the held random play."""
KINDS = ("random", "random_held", "constant")


def returns_of(game: str, actor: Actor, episodes: int, seed: int, max_steps: int | None) -> list[float]:
    """Return the returns of whole evaluation episodes."""
    environment = AtariEnvironments(game, episodes, variant="evaluation", size=(42, 42), seed=seed)
    played = play(environment, actor, max_steps)
    environment.close()
    return [episode["return"] for episode in played]


def random_returns(
    game: str, episodes: int, persistence: float | None = None, max_steps: int | None = None
) -> list[float]:
    """Return the returns of random play, which may hold its actions."""
    environment = AtariEnvironments(game, 1, size=(42, 42))
    num_actions = environment.num_actions
    environment.close()
    actor = RandomActor(num_actions, np.random.default_rng(0), Exploration(persistence=persistence))
    return returns_of(game, actor, episodes, 0, max_steps)


def chance_of(game: str, episodes: int, tries: int, max_steps: int | None = None) -> dict[str, Any]:
    """Return the returns of the three kinds of chance, and the name of the best constant action."""
    environment = AtariEnvironments(game, 1, size=(42, 42))
    names = environment.action_meanings
    environment.close()
    constant = [ConstantActor(action) for action in range(len(names))]
    tried = [float(np.mean(returns_of(game, actor, tries, 1_000_000, max_steps))) for actor in constant]
    best = int(np.argmax(tried))
    return {
        "random": random_returns(game, episodes, None, max_steps),
        "random_held": random_returns(game, episodes, PERSISTENCE, max_steps),
        "constant": returns_of(game, constant[best], episodes, 0, max_steps),
        "constant_action": names[best],
        "constant_tried": dict(zip(names, tried, strict=True)),
    }


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--games", default=GAMES, smoke="Pong", help="games, separated by commas")
    parser.add_argument("--episodes", type=int, default=30, smoke=2, help="episodes of each kind")
    parser.add_argument("--tries", type=int, default=10, smoke=1, help="episodes of every constant action at first")
    parser.add_argument("--max_steps", type=int, smoke=20, help="steps of an episode at most")
    options = parser.parse_args()
    games: dict[str, Any] = report.read("chance", options).get("games", {})
    for game in map(canonical_game, options.games.split(",")):
        games[game] = chance_of(game, options.episodes, options.tries, options.max_steps)
        means = {kind: round(float(np.mean(games[game][kind])), 1) for kind in KINDS}
        print(game, means, games[game]["constant_action"], flush=True)
        report.write("chance", {"games": games}, options, echo=False)
    report.write("chance", {"games": games}, options)


if __name__ == "__main__":
    main()
