"""Dyna-Q on CartPole-v1 against DQN with the same number of gradient updates.

    python benchmarks/dyna_cartpole.py [--seeds 5] [--folder runs/dyna_cartpole]

Both take the same real steps and updates from `ensemble__dyna_q` and `dqn_cartpole`, and the same number of transitions
per update: Dyna-Q's are half real and half dreamed, so DQN's batches are twice as large.
"""

from __future__ import annotations

import numpy as np
import report
import smoke
import training

from pipelines.evaluation.statistics import probability_of_improvement

REAL_STEPS = (500, 1000, 1500, 2000)
SETTINGS = {"ensemble__dyna_q": (), "dqn_cartpole": ("data.sampling.batch_size=256",)}


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5, smoke=1, help="runs of every experiment")
    parser.add_folder("runs/dyna_cartpole")
    options = parser.parse_args()
    wanted = [
        training.Run(name, seed, settings) for name, settings in SETTINGS.items() for seed in range(options.seeds)
    ]
    trained = training.train(wanted, options.folder.resolve(), smoke=options.smoke)
    scores = {
        (name, steps): [training.score_at(trained[run], steps) for run in wanted if run.experiment == name]
        for name in SETTINGS
        for steps in REAL_STEPS
    }
    figures = {
        name: {
            **{f"return_at_{steps}": training.summary(scores[name, steps]) for steps in REAL_STEPS},
            "updates": trained[wanted[0]][-1].updates,
        }
        for name in SETTINGS
    }
    dyna, dqn = ([np.array(scores[name, 2000])] for name in SETTINGS)
    improvement = probability_of_improvement(dyna, dqn)
    figures["probability_of_improvement_at_2000"] = [round(float(value), 3) for value in improvement]
    report.write("dyna_cartpole", {"seeds": options.seeds, **figures}, options)


if __name__ == "__main__":
    main()
