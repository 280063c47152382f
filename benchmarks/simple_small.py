"""SimPLe on a laptop: `simple__mbpo_small` on real Atari to its end, its curve, and random play.

python benchmarks/simple_small.py [--game Pong] [--seeds 1] [--folder runs/simple_small]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import report
import training
from atari_small import chance_of_difference, interval, random_returns

from datamodules.environments.atari import canonical_game


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--game", default="Pong")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/simple_small"), help="of the runs, which are kept")
    options = parser.parse_args()
    game = canonical_game(options.game)
    wanted = [training.Run("simple__mbpo_small", seed, (f"data.game={game}",), game) for seed in range(options.seeds)]
    trained = training.train(wanted, options.folder.resolve())
    chance = random_returns(game, 30)
    returns = [float(value) for run in wanted for value in trained[run][-1].returns]
    last = trained[wanted[0]][-1]
    figures = {
        "game": game,
        "seeds": options.seeds,
        "random": interval(chance),
        "simple__mbpo_small": {
            **interval(returns),
            "p_not_above_random": chance_of_difference(returns, chance),
            "real_steps": last.env_steps,
            "updates": last.updates,
            "curves": [[[e.env_steps, round(float(np.mean(e.returns)), 2)] for e in trained[run]] for run in wanted],
        },
    }
    report.write("simple_small", figures)


if __name__ == "__main__":
    main()
