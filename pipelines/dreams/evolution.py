"""Evolving a linear controller: the search, and what a population earns in dreams or in reality."""

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
"""Probability of still being there, below which a dream is over."""


class Evolution:
    """CMA-ES (Hansen & Ostermeier 2001) by the library cma, on random numbers of its own.

    Its state is plain data: where it began and what it was told. A new search that is told the same again asks for the
    same populations, so nothing of the library's need be stored.

    Args:
        start: (V,) mean of the first population.
        sigma: population's standard deviation.
        population: P, vectors in a population.
        covariance: "full", or "diagonal" (Ros & Hansen 2008) where V squared numbers are too many.
        seed: seed of the draws.
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
        """Learn what each vector of the population earned, (P,); more is better."""
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
        """Populations that were judged."""
        return len(self.told)

    @property
    def mean(self) -> np.ndarray:
        """The middle of the next population (V,): the best guess where fitness is noisy (Hansen 2016, section B.5)."""
        return np.array(self.search.mean)

    def state_dict(self) -> dict[str, Any]:
        """Return where the search began, and what it was told."""
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
        """Make a search that goes on where `state_dict` was taken."""
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
    """Let every controller of a population dream from the same states, all in one batch.

    Args:
        model: with the capabilities step and reward.
        controller: whose vectors they are.
        vectors: (P, V).
        starts: (E, *state_shape).
        horizon: steps of a dream; it is over before where hardly any goes on.

    Returns:
        The returns (P, E), in which a reward counts as likely as the dream gets there, and the steps dreamed.
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
    """P controllers, each in E environments beside each other.

    Args:
        model: built, with its spec.
        policy: whose vectors they are.
        generator: not drawn from.
        vectors: (P, V).
    """

    def __init__(
        self, model: WorldModel, policy: LinearController, generator: np.random.Generator, vectors: Tensor
    ) -> None:
        super().__init__(model, policy, generator)
        self.controller = policy
        self.vectors = vectors

    def choose(self, state: Tensor, legal_actions: np.ndarray | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Take every controller's best action."""
        features = self.model.features(state).float().unflatten(0, (len(self.vectors), -1))
        return self.controller.scores(self.vectors, features).argmax(dim=2).flatten().cpu().numpy(), {}


def real_returns(
    model: WorldModel, controller: LinearController, vectors: Tensor, environment: VectorEnvironment, horizon: int
) -> tuple[Tensor, int]:
    """Let every controller of a population (P, V) play an episode in as many of P * E environments each.

    Returns:
        The returns (P, E), raw, of at most `horizon` steps, and the real steps that were made.
    """
    actor = PopulationActor(model, controller, np.random.default_rng(0), vectors)
    episodes = play(environment, actor, max_steps=horizon)
    returns = torch.tensor([episode["return"] for episode in episodes], device=vectors.device)
    return returns.view(len(vectors), -1), sum(episode["length"] for episode in episodes)


class Allocated(TorchDispatchMode):
    """Counts the bytes of all tensors that are made meanwhile: an upper bound of what is held at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if all(value.alias_info is None for value in func._schema.returns):
            self.bytes += sum(leaf.nbytes for leaf in tree_leaves(made) if isinstance(leaf, Tensor))
        return made


def bytes_per_dream(model: WorldModel, controller: LinearController) -> int:
    """Return the memory that one more dream takes, at most."""
    counts = []
    for dreams in (1, 9):
        with Allocated() as allocated, torch.random.fork_rng(devices=[]):
            dreamed_returns(model, controller, controller.vector[None], model.initial(dreams), 1)
        counts.append(allocated.bytes)
    return (counts[1] - counts[0]) // 8
