"""BBF on real Atari on one core, with and without self-prediction, beside random play and the best constant action.

    python benchmarks/bbf_small.py [--seeds 1] [--games UpNDown,KungFuMaster] [--folder runs/bbf_small]

Runs `bbf_small` as its configuration is ("self_prediction") and with `self_prediction: null` ("without"), each on one
thread, one at a time. 30 evaluation episodes at the end. "random" is 30 episodes of uniformly random play under the
same protocol. "constant" is the action whose episodes earn most if it is always played: what needs no learning. Whether
a mean is above either, or above that without self-prediction, is tested by permutation. The result file keeps the games
that were not asked for; each says its own commit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import report
import smoke
import training
from atari_small import chance_of_difference, interval, random_returns

from datamodules.acting import Actor, Moment
from datamodules.environments.atari import AtariEnvironments, canonical_game
from pipelines.evaluation.episodes import play
from pipelines.evaluation.results import human_normalized

EXPERIMENT = "bbf_small"
VARIANTS = {"self_prediction": (), "without": ("model.policy.self_prediction=null",)}


class Constant(Actor):
    """Always plays the same action."""

    def __init__(self, action: int) -> None:
        self.action = action

    def act(self, moment: Moment) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the action (N,) for every environment."""
        return np.full(len(moment.is_first), self.action), {}


def constant_returns(game: str, episodes: int, max_steps: int | None = None) -> tuple[int, list[float]]:
    """Return the constant action whose episodes have the highest mean return, and their returns."""
    found = []
    environment = AtariEnvironments(game, episodes, variant="evaluation", size=(42, 42), seed=0)
    for action in range(environment.num_actions):
        played = play(environment, Constant(action), max_steps)
        found.append([episode["return"] for episode in played])
    environment.close()
    best = int(np.argmax([np.mean(returns) for returns in found]))
    return best, found[best]


def run_of(game: str, variant: str, seed: int) -> training.Run:
    """Return the training run of a cell."""
    return training.Run(EXPERIMENT, seed, (f"data.game={game}", *VARIANTS[variant]), f"{game}_{variant}")


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="runs of every game and variant")
    parser.add_argument("--games", default="UpNDown,KungFuMaster", smoke="Pong", help="games, separated by commas")
    parser.add_argument("--episodes", type=int, default=30, smoke=2, help="episodes of play without learning")
    parser.add_argument("--max_steps", type=int, default=3000, smoke=20, help="steps of those episodes at most")
    parser.add_folder("runs/bbf_small")
    options = parser.parse_args()
    games = [canonical_game(game) for game in options.games.split(",")]
    wanted = [run_of(game, variant, seed) for game in games for variant in VARIANTS for seed in range(options.seeds)]
    trained = training.train(wanted, options.folder.resolve(), at_a_time=1, smoke=options.smoke)
    figures: dict[str, Any] = report.read("bbf_small", options).get("games", {})
    for game in games:
        chance = random_returns(game, options.episodes, max_steps=options.max_steps)
        action, constant = constant_returns(game, options.episodes, options.max_steps)
        figures[game] = {"commit": report.provenance()["commit"], "random": interval(chance)}
        figures[game]["constant"] = {"action": action, **interval(constant)}
        returns: dict[str, list[float]] = {}
        for variant in VARIANTS:
            runs = [run_of(game, variant, seed) for seed in range(options.seeds)]
            returns[variant] = [float(value) for run in runs for value in trained[run][-1].returns]
            last = trained[runs[0]][-1]
            figures[game][variant] = {
                **interval(returns[variant]),
                "human_normalized": human_normalized(game, float(np.mean(returns[variant]))),
                "p_not_above_random": chance_of_difference(returns[variant], chance),
                "p_not_above_constant": chance_of_difference(returns[variant], constant),
                "real_steps": last.env_steps,
                "updates": last.updates,
                "minutes": round(max(training.minutes(run, options.folder) for run in runs), 1),
                "curves": [[[e.env_steps, round(e.score, 2)] for e in trained[run]] for run in runs],
            }
        figures[game]["p_self_prediction_not_above_without"] = chance_of_difference(
            returns["self_prediction"], returns["without"]
        )
    report.write("bbf_small", {"seeds": options.seeds, "games": figures}, options)


if __name__ == "__main__":
    main()
