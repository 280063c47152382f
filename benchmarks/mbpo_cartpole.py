"""MBPO on CartPole-v1 against DQN and PPO: greedy return after 300, 1000 and 2000 real steps.

    python benchmarks/mbpo_cartpole.py [--seeds 5] [--folder runs/mbpo_cartpole]

Runs `ensemble__mbpo`, `dqn_cartpole` and `ppo_cartpole` as their configurations are; every real step counts, those of
the random prefill included. A score is the mean of 5 greedy episodes at the first evaluation after so many real steps.
"""

from __future__ import annotations

import report
import smoke
import training

EXPERIMENTS = ("ensemble__mbpo", "dqn_cartpole", "ppo_cartpole")
REAL_STEPS = (300, 1000, 2000)


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5, smoke=1, help="runs of every experiment")
    parser.add_folder("runs/mbpo_cartpole")
    options = parser.parse_args()
    wanted = [training.Run(experiment, seed) for experiment in EXPERIMENTS for seed in range(options.seeds)]
    trained = training.train(wanted, options.folder.resolve(), smoke=options.smoke)
    figures = {
        experiment: {
            **{
                f"return_at_{steps}": training.summary(
                    training.score_at(trained[run], steps) for run in wanted if run.experiment == experiment
                )
                for steps in REAL_STEPS
            },
            "updates": trained[training.Run(experiment, 0)][-1].updates,
            "minutes": round(training.minutes(training.Run(experiment, 0), options.folder), 2),
        }
        for experiment in EXPERIMENTS
    }
    report.write("mbpo_cartpole", {"seeds": options.seeds, **figures}, options)


if __name__ == "__main__":
    main()
