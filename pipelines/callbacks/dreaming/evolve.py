"""Evolution of a linear controller, in dreams or in the real environment."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console

from datamodules.ranks import RankGenerator, gather, generator
from modules.agent import Agent
from modules.errors import UserError, check_range
from modules.policies.linear import LinearController
from pipelines.callbacks.progress import last_update
from pipelines.callbacks.run import Run
from pipelines.display.progress import counter
from pipelines.dreams.evolution import (
    Covariance,
    Evolution,
    bytes_per_dream,
    dreamed_returns,
    real_returns,
)
from pipelines.dreams.starts import Starts
from pipelines.machine.memory import free_bytes
from pipelines.runs import checkpoints

TABLE, PICTURE = "evolution.csv", "evolution.png"


class Evolve(Callback):
    """Evolves an agent's linear controller by CMA-ES in every round (Ha & Schmidhuber 2018, section 3.3).

    Evolution runs before the last update of a round, so that an interrupted run can resume inside the round. CMA-ES
    starts from the controller that acts at present.

    The fitness of a controller is its mean return in dreams of the agent's world model. All controllers of a generation
    dream from the same states of real rows, in one batch that ranks share. Every `select_every` generations and after
    the last one, three candidates are compared on new dreams: the controller that acts at present, the mean of CMA-ES,
    and the best of the last generation. The one with the highest return acts from then on.

    With world "real", the fitness is the mean return of real episodes. Their steps count as real steps but are not
    stored, and the mean of CMA-ES acts after the last generation, without a comparison.

    The figures of every generation are in evolution.csv and evolution.png in the run's folder.

    Args:
        generations: number of generations in a round.
        population: number of controllers in a generation.
        dreams: number of dreams, or of real episodes, that give a controller's fitness.
        horizon: largest number of steps of a dream or an episode.
        sigma: standard deviation of the first population of a round.
        covariance: covariance matrix of CMA-ES: "full", or "diagonal" for more than about a thousand weights.
        world: world in which fitness is measured, "dream" or "real".
        select_every: number of generations between two choices of the controller that acts.
        starts: real rows that dreams start from.
        limit: number of real steps, of evolution and all others, at which evolution in the "real" world ends; null sets
            no limit.
        start: checkpoint with the controller that the first round starts from; null starts from zeros.
    """

    runs_before = ("Evaluate",)
    debug: ClassVar[dict[str, Any]] = {
        "generations": 2,
        "population": 4,
        "dreams": 2,
        "horizon": 20,
        "starts": {"episode_starts": 0},
    }

    def __init__(
        self,
        generations: int = 100,
        population: int = 64,
        dreams: int = 16,
        horizon: int = 1000,
        sigma: float = 0.1,
        covariance: Covariance = "full",
        world: Literal["dream", "real"] = "dream",
        select_every: int = 25,
        starts: Starts = Starts(context=8),
        limit: int | None = None,
        start: Path | None = None,
    ) -> None:
        if min(generations, dreams, horizon, select_every) < 1 or population < 4 or sigma <= 0:
            raise UserError(
                "evolve needs generations, dreams, horizon and select_every of at least 1, a population of at least 4 "
                f"and sigma above 0: got {generations}, {dreams}, {horizon}, {select_every}, {population} and {sigma}"
            )
        check_range("Evolve.starts.episode_starts", starts.episode_starts, 0, dreams)
        self.generations, self.population, self.dreams, self.horizon = generations, population, dreams, horizon
        self.sigma, self.covariance, self.world, self.select_every = sigma, covariance, world, select_every
        self.starts, self.limit, self.start = starts, limit, start
        self.search: Evolution | None = None
        self.evolved_at = -1
        """Number of updates at the end of the last completed evolution."""
        self.dreamed_steps = 0
        self.history: list[dict[str, float]] = []
        self.rank_generator = RankGenerator("evolution")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is a linear controller, a world to measure it in, and enough memory for the population."""
        if not isinstance(pl_module, Agent) or not isinstance(pl_module.policy, LinearController):
            raise UserError(
                "Evolve needs an Agent whose policy is modules.policies.linear.LinearController: got "
                f"{type(getattr(pl_module, 'policy', None) or pl_module).__name__}"
            )
        if self.world == "real":
            if not Run(trainer).store.writable:
                raise UserError("Evolve with world real plays episodes: leave out data.path, whose store is read-only")
        else:
            pl_module.world_model.require("step", "reward", by="Evolve")
            pl_module.world_model.check_horizon(self.horizon)
            self._check_memory(pl_module)
        self.generator = self.rank_generator.start(trainer.global_rank)
        if self.start is not None and trainer.ckpt_path is None:
            self._adopt(pl_module, self.start)

    def _check_memory(self, agent: Agent) -> None:
        controller = self._controller(agent)
        free, size = free_bytes(agent.device), len(controller.vector)
        if free is None:
            return
        # Parameters are kept in float32 and in float64. A full covariance takes four matrices: itself, two factors, and
        # a copy while it is updated.
        each = self.dreams * bytes_per_dream(agent.world_model, controller) + 24 * size
        matrices = 32 * size**2 if self.covariance == "full" else 0
        if self.population * each + matrices > free:
            fits = max(0, (free - matrices) // each)
            wanted = (self.population * each + matrices) / 2**30
            raise UserError(
                f"a population of {self.population} with {self.dreams} dreams each and {size} weights takes up to "
                f"{wanted:,.1f} GiB, but {free / 2**30:,.1f} GiB are free: at most {fits} fit"
                + (", more with covariance: diagonal" if matrices > free / 2 else "")
            )

    def _adopt(self, agent: Agent, path: Path) -> None:
        module, _ = checkpoints.load(path)
        found = module.require_policy()
        if not isinstance(found, LinearController):
            raise UserError(f"{path} holds a {type(found).__name__}, expected a LinearController")
        self._controller(agent).check(found.weight, f"the controller in {path}")
        self._controller(agent).adopt(found.vector)

    @staticmethod
    def _controller(agent: Agent) -> LinearController:
        assert isinstance(agent.policy, LinearController)
        return agent.policy

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Complete an evolution that was interrupted, or evolve if the first update ends a round."""
        self._evolve_if_due(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Evolve if the next update is the last of its round."""
        self._evolve_if_due(trainer, pl_module)

    def _evolve_if_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Agent)
        run = Run(trainer)
        last = pl_module.rounds.ends(run.updates + 1) or run.updates + 1 == last_update(trainer)
        if last and not run.is_over and run.updates != self.evolved_at:
            with run.precision():
                self.evolve(run, pl_module)
            self.evolved_at, self.search = run.updates, None
            self.report(run)

    def evolve(self, run: Run, agent: Agent) -> None:
        """Run the generations of a round that are left."""
        controller = self._controller(agent)
        if self.search is None:
            seed = int(generator(0, f"evolution {run.updates}").integers(2**31))
            first = controller.vector.cpu().numpy()
            self.search = Evolution(first, self.sigma, self.population, self.covariance, seed)
        search = self.search
        with counter("evolving", self.generations - search.generation, "gen", run.is_first) as advance:
            while search.generation < self.generations and not self._spent(run):
                population = search.ask()
                earned = self.evaluate_population(run, agent, population).mean(axis=1)
                self._note(run, earned)
                search.tell(earned)
                figures = self.history[-1]
                advance(1, f"best {figures['best']:.4g} mean {figures['mean']:.4g} ± {figures['spread']:.3g}")
                if search.generation % self.select_every == 0 or search.generation == self.generations:
                    best = population[int(earned.argmax())]
                    self._select(run, agent, [controller.vector.cpu().numpy(), search.mean, best])
                if run.trainer.received_sigterm:
                    raise SIGTERMException
        if self.world == "real" and search.generation:
            self._act_by(agent, search.mean)

    def _spent(self, run: Run) -> bool:
        return self.world == "real" and self.limit is not None and run.real_steps >= self.limit

    def evaluate_population(self, run: Run, agent: Agent, vectors: np.ndarray, dreams: int | None = None) -> np.ndarray:
        """Return the returns (P, E) of controllers (P, V) in E dreams or episodes each; ranks share the work.

        Args:
            run: run whose data and devices are used.
            agent: agent with the world model and the controller.
            vectors: parameters (P, V) of the controllers.
            dreams: number E of dreams or episodes per controller; None takes `self.dreams`.
        """
        controller, data, trainer = self._controller(agent), run.data, run.trainer
        dreams = dreams or self.dreams
        share = np.array_split(vectors, trainer.world_size)[trainer.global_rank]
        own = torch.from_numpy(share).float().to(agent.device)
        earned, steps = own.new_zeros(0, dreams), 0
        if self.world == "dream":
            states = self.starts.draw(data, agent.world_model, dreams, self.generator)
            if trainer.world_size > 1:
                states = gather(states.cpu())[0].to(agent.device)
            if len(own):
                earned, steps = dreamed_returns(agent.world_model, controller, own, states, self.horizon)
        elif len(own):
            seed = int(self.generator.integers(2**31))
            environment = data.training_environment(len(own) * dreams, seed)
            earned, steps = real_returns(agent.world_model, controller, own, environment, self.horizon)
            environment.close()
        shares = gather((earned.float().cpu().numpy(), steps))
        total = sum(made for _, made in shares)
        if self.world == "dream":
            self.dreamed_steps += total
        else:
            data.count_unstored(math.ceil(total / trainer.world_size))
        found: np.ndarray = np.concatenate([rows for rows, _ in shares]).astype(np.float64)
        return found

    def _select(self, run: Run, agent: Agent, candidates: list[np.ndarray]) -> None:
        """Let the candidate with the highest return on new dreams act. The dreams number as many as a generation's."""
        if self.world == "real":
            return
        dreams = max(1, self.population * self.dreams // len(candidates))
        earned = self.evaluate_population(run, agent, np.stack(candidates), dreams).mean(axis=1)
        winner = int(earned.argmax())
        self._act_by(agent, candidates[winner])
        self.history[-1]["selected"] = float(earned[winner])

    def _act_by(self, agent: Agent, vector: np.ndarray) -> None:
        self._controller(agent).adopt(torch.from_numpy(vector).float().to(agent.device))

    def _note(self, run: Run, earned: np.ndarray) -> None:
        assert self.search is not None
        self.history.append(
            {
                "update": run.updates,
                "generation": self.search.generation + 1,
                "best": float(earned.max()),
                "mean": float(earned.mean()),
                "spread": float(earned.std()),
                "sigma": float(self.search.search.sigma),
                "dreamed_steps": self.dreamed_steps,
                "real_steps": run.real_steps,
                "selected": float("nan"),
            }
        )

    def report(self, run: Run) -> None:
        """Write the table and the picture, log the last generation, and print a summary."""
        if not (run.is_first and self.history):
            return
        last, folder = self.history[-1], run.folder
        run.log({f"evolve/{name}": value for name, value in last.items() if not math.isnan(value)})
        with (folder / TABLE).open("w", newline="") as file:
            writer = csv.DictWriter(file, last.keys())
            writer.writeheader()
            writer.writerows(self.history)
        plot(self.history, folder / PICTURE, self.world)
        run.log_pictures("evolution", [folder / PICTURE])
        selected = "" if math.isnan(last["selected"]) else f", selected {last['selected']:.2f} on new dreams"
        Console().print(
            f"evolved {len(self.history)} generations in {'dreams' if self.world == 'dream' else 'real episodes'}: "
            f"best {last['best']:.2f}, mean {last['mean']:.2f}, spread {last['spread']:.2f}{selected}; "
            f"{folder / PICTURE}",
            soft_wrap=True,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state of CMA-ES, the figures of all generations, and the generator of every rank."""
        return {
            "search": None if self.search is None else self.search.state_dict(),
            "evolved_at": self.evolved_at,
            "dreamed_steps": self.dreamed_steps,
            "history": self.history,
            "generators": self.rank_generator.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore CMA-ES, the figures and the generators."""
        self.search = None if state_dict["search"] is None else Evolution.restore(state_dict["search"])
        self.evolved_at, self.dreamed_steps = state_dict["evolved_at"], state_dict["dreamed_steps"]
        self.history = state_dict["history"]
        self.rank_generator.load_state_dict(state_dict["generators"])


def plot(history: list[dict[str, float]], path: Path, world: str) -> None:
    """Plot the fitness of the population against generations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    best, mean, spread, selected = (
        np.array([row[name] for row in history]) for name in ("best", "mean", "spread", "selected")
    )
    generation = np.arange(1, len(history) + 1)
    axes.fill_between(generation, mean - spread, mean + spread, alpha=0.2, label="mean ± spread")
    axes.plot(generation, mean)
    axes.plot(generation, best, label="best")
    voted = ~np.isnan(selected)
    if voted.any():
        axes.plot(generation[voted], selected[voted], "k.", label="selected, on new dreams")
    updates = np.array([row["update"] for row in history])
    for first in np.flatnonzero(np.diff(updates)) + 1:
        axes.axvline(first + 0.5, color="grey", linewidth=0.5)
    axes.set(title=f"return in {'dreams' if world == 'dream' else 'real episodes'}", xlabel="generation")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
