"""Dreamed steps per second of an evolution, by population, beside judging the same population in the emulator.

    python benchmarks/evolution.py [--threads 2]

Untrained networks of `world_models__evolution_small` and of the paper's `world_models__evolution` on Pong, controllers
of random weights. A dream is 100 steps, 16 dreams judge a vector, all in one batch. In the emulator every vector plays
one episode, 100 steps at most, in an environment of its own: the same VAE encodes its frames and the same LSTM
remembers, as its features are what a controller sees; the time to make the environments is not counted. "emulator" is
stepping the same environments alone, actions drawn at random. Medians of several repeats in one run on the same cores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import report
import smoke
import torch

from datamodules.environments.atari import AtariEnvironments
from modules.latents.mdn_rnn import MDNRNN
from modules.latents.vae import VAE
from modules.policies.linear import LinearController
from modules.world_model import Spec
from pipelines.dreams.evolution import dreamed_returns, real_returns

DREAMS = 16
MODELS: dict[str, tuple[Callable[[], MDNRNN], tuple[int, int], str]] = {
    "small": (lambda: MDNRNN(VAE(16, (16, 32, 64)), hidden_size=64), (42, 42), "grey"),
    "paper": (lambda: MDNRNN(VAE()), (64, 64), "rgb"),
}
POPULATIONS = {"small": (4, 16, 64, 256), "paper": (4, 16, 64)}


def rate(work: Callable[[], int], repeats: int) -> float:
    """Return the median of steps per second; the first time does not count."""
    work()
    rates = []
    for _ in range(repeats):
        begin = time.perf_counter()
        steps = work()
        rates.append(steps / (time.perf_counter() - begin))
    return float(np.median(rates))


def real_rate(
    model: MDNRNN, controller: LinearController, size: tuple[int, int], color: Any, options: argparse.Namespace
) -> tuple[float, float]:
    """Return the real steps per second of judging a population, and of the emulators alone."""
    population = options.real_population
    vectors, generator = torch.randn(population, len(controller.vector)), np.random.default_rng(0)
    environment = AtariEnvironments("pong", population, size=size, color=color, seed=0)
    judged = rate(lambda: real_returns(model, controller, vectors, environment, options.horizon)[1], options.repeats)
    environment.reset()

    def alone() -> int:
        for _ in range(options.horizon):
            environment.step(generator.integers(environment.num_actions, size=environment.num_envs))
        return options.horizon * environment.num_envs

    stepped = rate(alone, options.repeats)
    environment.close()
    return judged, stepped


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--repeats", type=int, default=5, smoke=1, help="repeats of every measurement")
    parser.add_argument("--horizon", type=int, default=100, smoke=3, help="steps of a dream")
    parser.add_argument("--largest", type=int, default=256, smoke=4, help="largest population that dreams")
    parser.add_argument("--real_population", type=int, default=16, smoke=2, help="vectors judged in the emulator")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures: dict[str, Any] = {}
    for name, (make, size, color) in MODELS.items():
        torch.manual_seed(0)
        model, controller = make(), LinearController()
        model.build_from(Spec((3 if color == "rgb" else 1, *size), 1, 6))
        controller.build(model.feature_shape, 6)
        judged, stepped = real_rate(model, controller, size, color, options)
        starts, rates = model.initial(DREAMS), {}
        for population in (size for size in POPULATIONS[name] if size <= options.largest):
            vectors = torch.randn(population, len(controller.vector))
            rates[str(population)] = rate(
                lambda vectors=vectors, starts=starts, model=model, controller=controller: dreamed_returns(
                    model, controller, vectors, starts, options.horizon
                )[1],
                options.repeats,
            )
        figures[name] = {
            "dreamed_steps_per_second": {population: round(found) for population, found in rates.items()},
            "judged_in_emulator_per_second": round(judged),
            "emulator_alone_per_second": round(stepped),
            "ratio_to_judging_in_emulator": {key: round(found / judged, 1) for key, found in rates.items()},
            "best_ratio": round(max(rates.values()) / judged, 1),
        }
    setting = {name: getattr(options, name) for name in ("threads", "horizon", "real_population")}
    report.write("evolution", {**setting, "dreams": DREAMS, "models": figures}, options)


if __name__ == "__main__":
    main()
