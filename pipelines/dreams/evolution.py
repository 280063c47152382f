"""Evolution of a linear controller: CMA-ES, and the returns of a population in dreams or in reality."""

from __future__ import annotations

from typing import Any, Literal

import cma
import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from datamodules.environments.environment import VectorEnvironment
from modules.errors import UserError
from modules.imagination import evaluating
from modules.policies.linear import LinearController
from modules.world_model import WorldModel
from pipelines.acting.actors import ModelActor
from pipelines.evaluation.episodes import play

Covariance = Literal["full", "diagonal"]
MIN_SURVIVAL = 1e-3
"""Probability of reaching a step, below which a dream ends."""


class Evolution:
    """CMA-ES (Hansen & Ostermeier 2001) by the library cma, with its own random generator.

    The state is plain data: the arguments and the fitness of all populations so far. A new search with the same
    arguments and fitness draws the same populations, so that no state of the library has to be stored.

    Args:
        start: mean (V,) of the first population.
        sigma: standard deviation of the first population.
        population: number P of vectors in a population.
        covariance: shape of the covariance: "full", or "diagonal" (Ros & Hansen 2008) if V * V numbers are too many.
        seed: seed of the populations.
    """

    def __init__(self, start: np.ndarray, sigma: float, population: int, covariance: Covariance, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.start = start.astype(np.float64)
        self.sigma, self.population, self.covariance, self.seed = sigma, population, covariance, seed
        self.told: list[np.ndarray] = []
        options = {
            "popsize": population,
            "CMA_diagonal": covariance == "diagonal",
            "seed": np.nan,  # leave NumPy's global generator alone
            "randn": lambda *shape: generator.standard_normal(shape),
            "verbose": -9,
        }
        self.search = cma.CMAEvolutionStrategy(self.start, sigma, options)
        self.asked: list[np.ndarray] | None = None

    def ask(self) -> np.ndarray:
        """Return the next population (P, V)."""
        self.asked = self.search.ask()
        return np.stack(self.asked)

    def tell(self, fitness: np.ndarray) -> None:
        """Update the search by the fitness (P,) of the population's vectors; more is better."""
        if not np.isfinite(fitness).all():
            raise UserError(
                f"a controller earned {fitness[~np.isfinite(fitness)][0]}: the world model's rewards are not finite"
            )
        assert self.asked is not None, "ask first"
        self.search.tell(self.asked, (-fitness).tolist())
        self.told.append(fitness.astype(np.float64))
        self.asked = None

    @property
    def generation(self) -> int:
        """Return the number of populations with a known fitness."""
        return len(self.told)

    @property
    def mean(self) -> np.ndarray:
        """Return the mean (V,) of the next population: the best guess for noisy fitness (Hansen 2016, section B.5)."""
        return np.array(self.search.mean)

    def state_dict(self) -> dict[str, Any]:
        """Return the arguments of the search and the fitness of all populations so far."""
        return {
            "start": torch.from_numpy(self.start),
            "sigma": self.sigma,
            "population": self.population,
            "covariance": self.covariance,
            "seed": self.seed,
            "told": torch.from_numpy(np.array(self.told).reshape(-1, self.population)),
        }

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Evolution:
        """Return a search that continues from a `state_dict`."""
        arguments = {name: state[name] for name in ("sigma", "population", "covariance", "seed")}
        search = cls(state["start"].numpy(), **arguments)
        for fitness in state["told"].numpy():
            search.ask()
            search.tell(fitness)
        return search


@torch.no_grad()
def dreamed_returns(
    model: WorldModel, controller: LinearController, vectors: Tensor, starts: Tensor, horizon: int
) -> tuple[Tensor, int]:
    """Dream with every controller of a population from the same start states, in one batch.

    Args:
        model: world model with the capabilities step and reward.
        controller: controller whose parameters the vectors replace.
        vectors: parameter vectors (P, V) of the population.
        starts: start states (E, *state_shape).
        horizon: largest number of steps of a dream; the dreams end earlier when almost none is still going on.

    Returns:
        The returns (P, E), with rewards weighted by the probability of reaching them, and the number of dreamed steps.
    """
    population, dreams = len(vectors), len(starts)
    states = starts.repeat(population, *[1] * (starts.ndim - 1))
    returns, reached = (torch.full((len(states),), value, device=starts.device) for value in (0.0, 1.0))
    steps = 0
    with evaluating(model):
        while steps < horizon and (steps % 16 or bool((reached > MIN_SURVIVAL).any())):
            features = model.features(states).float().unflatten(0, (population, dreams))
            action = controller.scores(vectors, features).argmax(dim=2).flatten()
            states, reward, continuation = model.step(states, action)
            returns += reached * reward
            reached = reached * continuation
            steps += 1
    return returns.view(population, dreams), steps * len(states)


class PopulationActor(ModelActor):
    """Acts with P controllers, each in E consecutive environments.

    Args:
        model: world model that is built and has its spec.
        policy: controller whose parameters the vectors replace.
        generator: generator that every actor takes; this actor draws nothing from it.
        vectors: parameter vectors (P, V) of the population.
    """

    def __init__(
        self, model: WorldModel, policy: LinearController, generator: np.random.Generator, vectors: Tensor
    ) -> None:
        super().__init__(model, policy, generator)
        self.controller = policy
        self.vectors = vectors

    def choose(self, state: Tensor, legal_actions: np.ndarray | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the best action of every controller."""
        features = self.model.features(state).float().unflatten(0, (len(self.vectors), -1))
        return self.controller.scores(self.vectors, features).argmax(dim=2).flatten().cpu().numpy(), {}


def real_returns(
    model: WorldModel, controller: LinearController, vectors: Tensor, environment: VectorEnvironment, horizon: int
) -> tuple[Tensor, int]:
    """Play one episode per environment, with every controller of a population (P, V) in E of the P * E environments.

    Returns:
        The raw returns (P, E) of at most `horizon` steps, and the number of real steps.
    """
    actor = PopulationActor(model, controller, np.random.default_rng(0), vectors)
    episodes = play(environment, actor, max_steps=horizon)
    returns = torch.tensor([episode["return"] for episode in episodes], device=vectors.device)
    return returns.view(len(vectors), -1), sum(episode["length"] for episode in episodes)


class Allocated(TorchDispatchMode):
    """Counts the bytes of all tensors allocated in the block, an upper bound of the memory in use at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if all(value.alias_info is None for value in func._schema.returns):
            self.bytes += sum(leaf.nbytes for leaf in tree_leaves(made) if isinstance(leaf, Tensor))
        return made


def bytes_per_dream(model: WorldModel, controller: LinearController) -> int:
    """Return an upper bound of the bytes that one more dream takes."""
    counts = []
    for dreams in (1, 9):
        with Allocated() as allocated, torch.random.fork_rng(devices=[]):
            dreamed_returns(model, controller, controller.vector[None], model.initial(dreams), 1)
        counts.append(allocated.bytes)
    return (counts[1] - counts[0]) // 8
