"""Dreamed steps per second, by model and batch size, beside the real steps of the world that the model is of.

    python benchmarks/imagination.py [--threads 2]

Untrained networks of the sizes that the configurations use, a uniformly random policy, dreams of 10 steps; real steps
are those of a vector environment, of one copy and of as many as are quickest, actions drawn at random, nothing stored.
Operations are those of one dreamed frame, counted by PyTorch's own counter: a multiplication and an addition each
count. What bounds a model is said by the fraction of the machine's matrix product (1024 x 1024 float32) it reaches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import report
import smoke
import torch
from torch.utils.flop_counter import FlopCounterMode

from datamodules.environments.atari import AtariEnvironments
from datamodules.environments.control import ControlEnvironments
from datamodules.environments.environment import VectorEnvironment
from modules.frames.stochastic_unet import StochasticUNet
from modules.frames.unet import UNet
from modules.imagination import evaluating, imagine
from modules.states.mlp_ensemble import MLPEnsemble
from modules.world_model import Spec, WorldModel

VECTOR = Spec((4,), 1, 2)
SMALL_FRAMES = Spec((1, 42, 42), 4, 6)
FRAMES = Spec((1, 84, 84), 4, 6)
MODELS: dict[str, tuple[Callable[[], WorldModel], Spec, tuple[int, ...]]] = {
    "ensemble 5 x 128 x 2": (lambda: MLPEnsemble(5, 5, 128, 2), VECTOR, (1, 100, 1000, 10_000)),
    "ensemble 7 x 200 x 4": (lambda: MLPEnsemble(7, 5, 200, 4), VECTOR, (1, 100, 1000, 10_000)),
    "UNet tiny 42 x 42": (lambda: UNet("tiny"), SMALL_FRAMES, (1, 16, 64, 256)),
    "stochastic UNet tiny 42 x 42": (lambda: StochasticUNet("tiny"), SMALL_FRAMES, (1, 16, 64, 256)),
    "UNet small 84 x 84": (lambda: UNet("small"), FRAMES, (1, 16, 64)),
}
COPIES = (1, 4, 8, 16, 64)
"""Of the real environment that are stepped together."""


class RandomPolicy(torch.nn.Module):
    """All actions alike."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.num_actions = num_actions

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(features), self.num_actions), torch.zeros(len(features))


def measure(step: Callable[[], Any], amount: int, seconds: float) -> float:
    """Return the median of five rates, amount per second."""
    step()
    rates = []
    for _ in range(5):
        begin, times = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds / 5:
            step()
            times += 1
        rates.append(times * amount / (time.perf_counter() - begin))
    return float(np.median(rates))


def real_rate(environment: VectorEnvironment, seconds: float) -> float:
    """Return the real steps per second of a vector environment."""
    generator = np.random.default_rng(0)
    environment.reset()

    def step() -> None:
        environment.step(generator.integers(environment.num_actions, size=environment.num_envs))

    found = measure(step, environment.num_envs, seconds)
    environment.close()
    return found


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--horizon", type=int, default=10, smoke=2, help="steps of a dream")
    parser.add_argument("--seconds", type=float, default=2.0, smoke=0.01, help="seconds of every measurement, at least")
    parser.add_argument("--largest", type=int, default=10_000, smoke=1, help="largest batch that dreams")
    parser.add_argument("--copies", type=int, nargs="+", default=COPIES, smoke=(1, 4), help="real environments at once")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rate, copies = partial(measure, seconds=options.seconds), options.copies
    matrix = torch.randn(1024, 1024)
    gemm = rate(lambda: matrix @ matrix, 2 * 1024**3)
    real = {
        VECTOR: [real_rate(ControlEnvironments("CartPole-v1", num), options.seconds) for num in copies],
        SMALL_FRAMES: [real_rate(AtariEnvironments("pong", num, size=(42, 42)), options.seconds) for num in copies],
        FRAMES: [real_rate(AtariEnvironments("pong", num), options.seconds) for num in copies],
    }
    models = {}
    for name, (make, spec, batch_sizes) in MODELS.items():
        torch.manual_seed(0)
        model = make()
        model.build_from(spec)
        policy = RandomPolicy(spec.num_actions)
        rates = {}
        for batch_size in (size for size in batch_sizes if size <= options.largest):
            with evaluating(model):
                states = model.initial(batch_size)
            dream = partial(imagine, model, policy, states, options.horizon)
            rates[batch_size] = rate(dream, batch_size * options.horizon)
        counter = FlopCounterMode(display=False)
        with counter, evaluating(model), torch.no_grad():
            model.step(states, torch.zeros(len(states), dtype=torch.int64))
        operations = counter.get_total_flops() / len(states)
        best = max(rates.values())
        models[name] = {
            "dreamed_steps_per_second": {str(size): round(found) for size, found in rates.items()},
            "real_steps_per_second": {str(num): round(found) for num, found in zip(copies, real[spec], strict=True)},
            "ratio_to_one_environment": round(best / real[spec][0], 2),
            "ratio_to_real": round(best / max(real[spec]), 2),
            "operations_per_frame": round(operations),
            "fraction_of_matrix_product": round(best * operations / gemm, 3),
        }
    machine = {"threads": torch.get_num_threads(), "matrix_product_gflops": round(gemm / 1e9, 1)}
    report.write("imagination", {**machine, "models": models}, options)


if __name__ == "__main__":
    main()
