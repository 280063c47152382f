"""SimPLe on a laptop: `simple__mbpo_small` on real Atari to its end, its curve, and random play.

python benchmarks/simple_small.py [--game Pong] [--seeds 1] [--folder runs/simple_small]
"""

from __future__ import annotations

import numpy as np
import report
import smoke
import training
from atari_small import chance_of_difference, interval, random_returns

from datamodules.environments.atari import canonical_game


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--game", default="Pong")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--random", type=int, default=30, smoke=2, help="episodes of random play")
    parser.add_argument("--random_steps", type=int, smoke=20, help="steps of those episodes at most")
    parser.add_folder("runs/simple_small")
    options = parser.parse_args()
    game = canonical_game(options.game)
    wanted = [training.Run("simple__mbpo_small", seed, (f"data.game={game}",), game) for seed in range(options.seeds)]
    trained = training.train(wanted, options.folder.resolve(), smoke=options.smoke)
    chance = random_returns(game, options.random, max_steps=options.random_steps)
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
    report.write("simple_small", figures, options)


if __name__ == "__main__":
    main()
