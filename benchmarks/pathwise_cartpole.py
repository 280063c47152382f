"""Backprop through the model on CartPole-v1: greedy return after 300, 600, 1000 and 2000 real steps.

    python benchmarks/pathwise_cartpole.py [--seeds 5] [--folder runs/pathwise_cartpole]

Runs `ensemble__pathwise` as its configuration is. Every real step counts, those of the random prefill included. A score
is the mean of 5 greedy episodes at the first evaluation after so many real steps. The controls are those of
mbpo_cartpole.py, which learn from the same world model's dreams by REINFORCE, or without a model.
"""

from __future__ import annotations

import report
import smoke
import training

EXPERIMENT = "ensemble__pathwise"
REAL_STEPS = (300, 600, 1000, 2000)


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5, smoke=1, help="runs of the experiment")
    parser.add_folder("runs/pathwise_cartpole")
    parser.add_argument("--at_a_time", type=int, default=2, help="runs side by side")
    options = parser.parse_args()
    runs = [training.Run(EXPERIMENT, seed) for seed in range(options.seeds)]
    trained = training.train(runs, options.folder.resolve(), options.at_a_time, smoke=options.smoke)
    figures = {
        f"return_at_{steps}": training.summary(training.score_at(trained[run], steps) for run in runs)
        for steps in REAL_STEPS
    }
    figures |= {"updates": trained[runs[0]][-1].updates, "minutes": round(training.minutes(runs[0], options.folder), 2)}
    report.write("pathwise_cartpole", {"seeds": options.seeds, EXPERIMENT: figures}, options)


if __name__ == "__main__":
    main()
