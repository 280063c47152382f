"""MuZero on CartPole-v1 within 30,000 real steps: return of its search against real steps.

    python benchmarks/muzero_cartpole.py [--seeds 5] [--folder runs/muzero_cartpole]

Runs `muzero__cartpole` as its configuration is, on one thread each, two at a time; every real step counts, those of the
untrained policy included. Scores are means of 10 episodes, at the end of 30, all played by search, without noise.
"""

from __future__ import annotations

import numpy as np
import report
import smoke
import training

EXPERIMENT = "muzero__cartpole"
REAL_STEPS = (5000, 10000, 15000, 20000, 25000)


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5, smoke=1, help="runs of every experiment")
    parser.add_folder("runs/muzero_cartpole")
    options = parser.parse_args()
    wanted = [training.Run(EXPERIMENT, seed) for seed in range(options.seeds)]
    trained = training.train(wanted, options.folder.resolve(), smoke=options.smoke)
    last = [trained[run][-1] for run in wanted]
    figures = {
        **{
            f"return_at_{steps}": training.summary(training.score_at(trained[run], steps) for run in wanted)
            for steps in REAL_STEPS
        },
        "return_at_end": training.summary(evaluation.score for evaluation in last),
        "real_steps": max(evaluation.env_steps for evaluation in last),
        "updates": last[0].updates,
        "minutes": [round(training.minutes(run, options.folder), 1) for run in wanted],
        "episodes_of_500": round(float(np.mean([value == 500 for each in last for value in each.returns])), 3),
    }
    report.write("muzero_cartpole", {"seeds": options.seeds, **figures}, options)


if __name__ == "__main__":
    main()
