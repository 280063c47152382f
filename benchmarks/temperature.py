"""Where a controller exploits its dream: dream return and real return by the temperature that it evolved at.

    python benchmarks/temperature.py [--game Boxing] [--folder runs/temperature] [--generations 60]

One world model is trained once, by `world_models__evolution_small` on its prefill alone. In it a controller evolves
from zeros at every tau of 0.1, 0.5, 1.0, 1.15 and 1.3, with the configuration's population, dreams and horizon, from
the same held starts. "dream" is what the mean of the search then earns in 256 fresh dreams at its own tau, "at_1" in as
many at tau 1, "real" in 100 real episodes to their end, one action in twenty random; rewards of dreams are signs, those
of reality raw. "uniform" is the dream return of 64 random controllers, "random" 100 real episodes of random play.
Intervals are bootstrapped, 95 %.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import report
import smoke
import torch
import training
from chance import random_returns
from significance import interval, p_not_above

from datamodules.atari import AtariReplay
from datamodules.environments.atari import canonical_game
from modules.agent import Agent
from modules.latents.mdn_rnn import MDNRNN
from modules.policies.linear import LinearController
from pipelines.acting.exploration import Exploration
from pipelines.acting.play import PolicyPlay
from pipelines.dreams.evolution import Evolution, dreamed_returns
from pipelines.dreams.starts import Starts
from pipelines.evaluation.episodes import evaluate
from pipelines.runs import checkpoints

EXPERIMENT = "world_models__evolution_small"
TEMPERATURES = (0.1, 0.5, 1.0, 1.15, 1.3)


class Laboratory:
    """A trained world model, its store, and how its run evolves."""

    def __init__(self, run: training.Run, folder: Path, options: argparse.Namespace) -> None:
        self.options = options
        path = folder / run.task / run.experiment / str(run.seed)
        self.agent, self.kept = checkpoints.load(path / "checkpoints" / "last.ckpt")
        assert isinstance(self.agent, Agent)
        self.model, self.controller = self.agent.world_model, self.agent.policy
        assert isinstance(self.model, MDNRNN)
        assert isinstance(self.controller, LinearController)
        self.world = checkpoints.world(path / "checkpoints" / "last.ckpt", self.kept)
        self.data = AtariReplay(path=path / "replay" / "rank0", frame_stack=1)
        self.data.setup("fit")
        entries = self.kept["config"]["trainer"]["callbacks"]
        self.how = next(entry["init_args"] for entry in entries if entry["class_path"].endswith(".Evolve"))
        if options.smoke:
            self.how |= {"population": 4, "dreams": 2, "horizon": 2}

    def starts(self, num: int, source: np.random.Generator) -> torch.Tensor:
        """Return states that dreams start from."""
        return Starts(self.how["starts"]["context"]).draw(self.data, self.model, num, source)

    def earn(self, vectors: torch.Tensor, states: torch.Tensor, temperature: float) -> torch.Tensor:
        """Return what vectors earn in dreams at a temperature, (P, E)."""
        self.model.temperature = temperature
        return dreamed_returns(self.model, self.controller, vectors, states, self.how["horizon"])[0]

    def evolve(self, temperature: float, generations: int) -> torch.Tensor:
        """Return the mean of a search (V,) from zeros."""
        source = np.random.default_rng(0)
        first = np.zeros(len(self.controller.vector))
        search = Evolution(first, self.how["sigma"], self.how["population"], self.how["covariance"], seed=0)
        for _ in range(generations):
            vectors = torch.from_numpy(search.ask()).float()
            earned = self.earn(vectors, self.starts(self.how["dreams"], source), temperature)
            search.tell(earned.mean(dim=1).double().numpy())
        return torch.from_numpy(search.mean).float()

    def play(self, vector: torch.Tensor) -> list[float]:
        """Return the returns of real episodes."""
        self.controller.adopt(vector)
        played = evaluate(
            self.agent, self.world, episodes=self.options.episodes, seed=1, run_seed=0, show=False,
            actor=PolicyPlay(Exploration(epsilon=0.05)),
            max_steps=self.options.max_steps,
            env_steps=self.kept["env_steps"], updates=self.kept["global_step"], experiment=EXPERIMENT,
        )  # fmt: skip
        return [float(value) for value in played.returns]


def first_round() -> tuple[str, ...]:
    """Return the settings of a run that trains the world model and hardly evolves."""
    content = training.settings(EXPERIMENT)
    updates = content["model"]["init_args"]["rounds"]["model_updates"][0]
    return (
        f"model.rounds.model_updates={updates}",
        f"trainer.max_steps={updates}",
        f"trainer.limit_train_batches={updates}",
    )


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--game", default="Boxing", help="game that is played")
    parser.add_folder("runs/temperature")
    parser.add_argument("--generations", type=int, default=60, smoke=1, help="generations of an evolution")
    parser.add_argument("--episodes", type=int, default=100, smoke=2, help="real episodes of a controller")
    parser.add_argument("--max_steps", type=int, smoke=20, help="steps of a real episode at most")
    parser.add_argument(
        "--fresh", type=int, default=256, smoke=32, help="dreams that an evolved controller is judged by"
    )
    parser.add_argument(
        "--temperatures", type=float, nargs="+", default=TEMPERATURES, smoke=(1.0,), help="temperatures of evolutions"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    options = parser.parse_args()
    game, folder = canonical_game(options.game), options.folder.resolve()
    run = training.Run(EXPERIMENT, 0, (f"data.game={game}", *first_round()), game)
    training.train([run], folder, smoke=options.smoke)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    laboratory = Laboratory(run, folder, options)
    fresh = laboratory.starts(options.fresh, np.random.default_rng(1))
    chance = random_returns(game, options.episodes, max_steps=options.max_steps)
    uniform = torch.randn(64, len(laboratory.controller.vector))
    rows: dict[str, Any] = {}
    for temperature in options.temperatures:
        vector = laboratory.evolve(temperature, options.generations)
        played = laboratory.play(vector)
        dreamed, at_one = (laboratory.earn(vector[None], fresh, tau)[0].tolist() for tau in (temperature, 1.0))
        rows[str(temperature)] = {
            "dream": interval(dreamed),
            "at_1": interval(at_one),
            "uniform": interval(laboratory.earn(uniform, fresh[:32], temperature).mean(dim=1).tolist()),
            "real": {**interval(played), "p_not_above_random": p_not_above(played, chance)},
        }
        print(temperature, rows[str(temperature)], flush=True)
    setting = {"game": game, "generations": options.generations, "real_steps": laboratory.kept["env_steps"]}
    figures = {**setting, "episodes": options.episodes, "random": interval(chance), "temperatures": rows}
    report.write("temperature", figures, options)


if __name__ == "__main__":
    main()
