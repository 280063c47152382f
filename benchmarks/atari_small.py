"""Real Atari on two cores: Dyna-Q and MBPO with a UNet, and DQN, at 42 x 42 pixels.

    python benchmarks/atari_small.py [--seeds 1] [--games Boxing,Freeway,Pong] [--folder runs/atari_small]

Runs `unet__dyna_q`, `unet__mbpo` and `dqn` as their configurations are, each on one thread, two at a time: the same
real steps, and the same number of gradient updates of the policy. 30 evaluation episodes at the end; "random" is 30
episodes of uniformly random play under the same protocol, "random_held" of random play that holds its actions, as that
of the prefill does. Whether a mean is above either is tested by permutation. The result file keeps the games that were
not asked for; each says its own commit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import report
import smoke
import training

from datamodules.environments.atari import AtariEnvironments, canonical_game
from pipelines.acting.actors import RandomActor
from pipelines.acting.exploration import Exploration
from pipelines.evaluation.episodes import play
from pipelines.evaluation.results import human_normalized

EXPERIMENTS = ("unet__dyna_q", "unet__mbpo", "dqn")
PERSISTENCE = 2.0
"""Of the configurations' prefill."""


def random_returns(
    game: str, episodes: int, persistence: float | None = None, max_steps: int | None = None
) -> list[float]:
    """Return the returns of random play, which may hold its actions, and be given up after so many steps."""
    environment = AtariEnvironments(game, episodes, variant="evaluation", size=(42, 42), seed=0)
    actor = RandomActor(environment.num_actions, np.random.default_rng(0), Exploration(persistence=persistence))
    played = play(environment, actor, max_steps)
    environment.close()
    return [episode["return"] for episode in played]


def interval(returns: list[float]) -> dict[str, Any]:
    """Return the mean of episodes with its bootstrapped 95 % interval."""
    draws = np.random.default_rng(0).choice(returns, (10_000, len(returns))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"mean": round(float(np.mean(returns)), 2), "low": round(float(low), 2), "high": round(float(high), 2)}


def chance_of_difference(returns: list[float], chance: list[float], draws: int = 20_000) -> float:
    """Return the one-sided p-value that returns are no better than chance, by permutation of their means."""
    pooled = np.array([*returns, *chance])
    shuffled = np.random.default_rng(0).permuted(np.tile(pooled, (draws, 1)), axis=1)
    differences = shuffled[:, : len(returns)].mean(axis=1) - shuffled[:, len(returns) :].mean(axis=1)
    return float((1 + (differences >= np.mean(returns) - np.mean(chance)).sum()) / (1 + draws))


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="runs of every experiment and game")
    parser.add_argument("--games", default="Boxing,Freeway,Pong", smoke="Pong", help="games, separated by commas")
    parser.add_argument("--random", type=int, default=30, smoke=2, help="episodes of random play")
    parser.add_argument("--random_steps", type=int, smoke=20, help="steps of those episodes at most")
    parser.add_folder("runs/atari_small")
    options = parser.parse_args()
    games = [canonical_game(game) for game in options.games.split(",")]
    wanted = [
        training.Run(experiment, seed, (f"data.game={game}",), game)
        for seed in range(options.seeds)
        for game in games
        for experiment in EXPERIMENTS
    ]
    trained = training.train(wanted, options.folder.resolve(), smoke=options.smoke)
    figures: dict[str, Any] = report.read("atari_small", options).get("games", {})
    for game in games:
        chance, held = (
            random_returns(game, options.random, persistence, options.random_steps)
            for persistence in (None, PERSISTENCE)
        )
        figures[game] = {"commit": report.provenance()["commit"], "random": interval(chance)}
        figures[game]["random_held"] = interval(held)
        for experiment in EXPERIMENTS:
            of_seeds = [run for run in wanted if (run.experiment, run.task) == (experiment, game)]
            returns = [float(value) for run in of_seeds for value in trained[run][-1].returns]
            last = trained[of_seeds[0]][-1]
            figures[game][experiment] = {
                **interval(returns),
                "human_normalized": human_normalized(game, float(np.mean(returns))),
                "p_not_above_random": chance_of_difference(returns, chance),
                "p_not_above_random_held": chance_of_difference(returns, held),
                "real_steps": last.env_steps,
                "updates": last.updates,
                "minutes": round(max(training.minutes(run, options.folder) for run in of_seeds), 1),
                "curve": [[e.env_steps, round(e.score, 2)] for e in trained[of_seeds[0]]],
            }
    report.write("atari_small", {"seeds": options.seeds, "games": figures}, options)


if __name__ == "__main__":
    main()
