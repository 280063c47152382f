"""Gumbel MuZero on real Atari on two cores, with and without EfficientZero's consistency, its search beside its policy.

    python benchmarks/muzero_atari_small.py [--seeds 1] [--games Pong,Breakout] [--folder runs/muzero_atari_small]

Runs `gumbel_muzero__atari_small` as its configuration is and with `model.weights.consistency=0`, each on one thread,
two at a time: 64 x 64 pixels, 16 simulations. "search" is 30 episodes played by search at the end, "policy" the
likeliest actions of the network alone in 30 more, both with one random action in twenty, as Mnih et al. (2015)
evaluate, and given up after 3,000 steps; "random" is 30 episodes of uniformly random play. Whether a mean is above
another is tested by permutation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import report
import smoke
import torch
import training
from atari_small import chance_of_difference, interval, random_returns

from datamodules.environments.atari import canonical_game
from pipelines.evaluation.episodes import evaluate
from pipelines.evaluation.results import Evaluation
from pipelines.runs import checkpoints

EXPERIMENT = "gumbel_muzero__atari_small"
VARIANTS = {"consistency": 2.0, "without": 0.0}
EPSILON = 0.05
"""Of the configuration's evaluation."""


def run_of(game: str, variant: str, seed: int) -> training.Run:
    """Return the training run of a cell."""
    settings = (f"data.game={game}", f"model.weights.consistency={VARIANTS[variant]}")
    return training.Run(EXPERIMENT, seed, settings, f"{game}_{variant}")


def policy_returns(run: training.Run, folder: Path, searched: Evaluation, max_steps: int) -> list[float]:
    """Return what the network alone earns in as many episodes as the search played last."""
    path = folder / run.task / run.experiment / str(run.seed) / "checkpoints" / "last.ckpt"
    module, kept = checkpoints.load(path)
    data = checkpoints.world(path, kept)
    played = evaluate(
        module, data, episodes=len(searched.episodes), seed=run.seed, run_seed=run.seed, show=False,
        env_steps=searched.env_steps, updates=searched.updates, experiment=run.experiment, epsilon=EPSILON,
        max_steps=max_steps,
    )  # fmt: skip
    return [float(value) for value in played.returns]


def cell(
    runs: list[training.Run],
    trained: dict[training.Run, list[Evaluation]],
    folder: Path,
    chance: list[float],
    max_steps: int,
) -> Any:
    """Return the figures of one game and variant."""
    searched = [float(value) for run in runs for value in trained[run][-1].returns]
    alone = [value for run in runs for value in policy_returns(run, folder, trained[run][-1], max_steps)]
    last = trained[runs[0]][-1]
    return {
        "search": interval(searched),
        "policy": interval(alone),
        "p_search_not_above_random": chance_of_difference(searched, chance),
        "p_search_not_above_policy": chance_of_difference(searched, alone),
        "real_steps": last.env_steps,
        "updates": last.updates,
        "minutes": round(max(training.minutes(run, folder) for run in runs), 1),
        "curves": [[[e.env_steps, round(float(np.mean(e.returns)), 2)] for e in trained[run]] for run in runs],
    }


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="runs of every game and variant")
    parser.add_argument("--games", default="Pong,Breakout", smoke="Pong", help="games, separated by commas")
    parser.add_argument("--random", type=int, default=30, smoke=2, help="episodes of random play")
    parser.add_argument("--random_steps", type=int, smoke=20, help="steps of those episodes at most")
    parser.add_argument(
        "--policy_steps", type=int, default=3000, smoke=20, help="steps of the policy's episodes at most"
    )
    parser.add_folder("runs/muzero_atari_small")
    options = parser.parse_args()
    folder, games = options.folder.resolve(), [canonical_game(game) for game in options.games.split(",")]
    wanted = [run_of(game, v, seed) for seed in range(options.seeds) for v in VARIANTS for game in games]
    trained = training.train(wanted, folder, smoke=options.smoke)
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    for game in games:
        chance = random_returns(game, options.random, max_steps=options.random_steps)
        figures[game] = {"random": interval(chance)}
        for variant in VARIANTS:
            runs = [run for run in wanted if run.task == f"{game}_{variant}"]
            figures[game][variant] = cell(runs, trained, folder, chance, options.policy_steps)
    report.write("muzero_atari_small", {"seeds": options.seeds, "simulations": 16, "games": figures}, options)


if __name__ == "__main__":
    main()
