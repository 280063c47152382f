"""Ways of playing, which a configuration names by class_path; `Collect` and `Evaluate` make their actors from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from datamodules.acting import Actor
from datamodules.environments.emulator import AtariEmulators
from datamodules.environments.environment import VectorEnvironment
from datamodules.replay_data import ReplayData
from modules.errors import UserError, check_range
from modules.learner import Learner
from modules.policies.policy import Policy
from modules.world_model import WorldModel
from pipelines.acting.actors import PolicyActor, RandomActor, SearchActor
from pipelines.acting.exploration import Exploration
from pipelines.acting.rules_actor import BEST, RulesActor
from pipelines.search.dynamics import EmulatorDynamics
from pipelines.search.evaluators import Rollouts
from pipelines.search.search import Search


class Stage(NamedTuple):
    """The parts of a run that an actor is made from."""

    environment: VectorEnvironment
    """Environments that the actor plays."""
    source: Callable[[str], np.random.Generator]
    """Returns the generator for a purpose."""
    model: WorldModel | None = None
    policy: Policy | None = None
    """World model and policy of the learner; None if there are none."""
    greedy: bool = False
    """Whether the actor plays its best action, as in evaluation."""


class Play(ABC):
    """A way of playing, which makes actors. A configuration names it, or your own subclass, by its class_path."""

    columns: ClassVar[tuple[str, ...]] = ()
    """Extra columns that the actors leave in their rows."""
    wants_clones: ClassVar[bool] = False
    """Whether the actors play only environments that can be cloned, since they plan in the true rules."""

    @abstractmethod
    def actor(self, stage: Stage) -> Actor:
        """Make an actor.

        Raises:
            UserError: the stage lacks a part that the actor needs.
        """

    def check(self, learner: Learner, data: ReplayData) -> None:
        """Raise a UserError if the learner or the world lacks a part that an evaluated actor needs."""
        if self.wants_clones:
            self.environment(data, 1, 0).close()

    def environment(self, data: ReplayData, num_envs: int, seed: int) -> VectorEnvironment:
        """Make environments for evaluation that the actors can play."""
        if self.wants_clones:
            return data.clonable_environment(num_envs, seed, "evaluation")
        return data.evaluation_environment(num_envs, seed)

    def describe(self, greedy: bool) -> str:
        """Return a short description."""
        return type(self).__name__


@dataclass(frozen=True)
class RandomPlay(Play):
    """Plays every action with the same probability.

    Args:
        exploration: settings of exploration; only `persistence` is used, since every action is random.
    """

    exploration: Exploration = Exploration()

    def actor(self, stage: Stage) -> RandomActor:
        """Make an actor that ignores its observations."""
        return RandomActor(stage.environment.num_actions, stage.source("actor"), self.exploration)

    def describe(self, greedy: bool) -> str:
        """Return a short description."""
        return "random" + _held(self.exploration)


@dataclass(frozen=True)
class PolicyPlay(Play):
    """Plays by the trained policy.

    Args:
        exploration: randomness in addition to the draws of the policy.
    """

    exploration: Exploration = Exploration()
    columns: ClassVar[tuple[str, ...]] = ("log_prob", "value")

    def check(self, learner: Learner, data: ReplayData) -> None:
        """Raise a UserError if the learner has no policy."""
        learner.require_policy()

    def actor(self, stage: Stage) -> PolicyActor:
        """Make an actor on the states of the world model."""
        model, policy = _parts(stage)
        return PolicyActor(model, policy, stage.source("policy"), stage.greedy, self.exploration)

    def describe(self, greedy: bool) -> str:
        """Return a short description."""
        return ("greedy" if greedy else "sampled") + _epsilon(self.exploration)


@dataclass(frozen=True)
class SearchPlay(Play):
    """Searches in the world model at every move, guided by the policy. Rows may keep the results to learn from.

    Args:
        search: settings of the search.
        exploration: temperatures of the moves, and the random moves in between.
    """

    search: Search
    exploration: Exploration = Exploration()
    columns: ClassVar[tuple[str, ...]] = ("search_policy", "root_value")

    def check(self, learner: Learner, data: ReplayData) -> None:
        """Raise a UserError if the learner has no policy, or no world model to search in."""
        learner.require_policy()
        learner.world_model.require("step", "reward", by="a search")

    def actor(self, stage: Stage) -> SearchActor:
        """Make an actor on the states of the world model."""
        model, policy = _parts(stage)
        return SearchActor(model, policy, self.search, stage.source("search"), stage.greedy, self.exploration)

    def describe(self, greedy: bool) -> str:
        """Return a short description."""
        return str(self.search) + _epsilon(self.exploration)


@dataclass(frozen=True)
class RulesPlay(Play):
    """Searches in the emulator itself at every move, with random play at the leaves; nothing needs to be learned.

    Args:
        search: settings of the search.
        rollout_depth: number of decisions of random play at a leaf; null plays to the end of the game.
        life_loss_ends: treat a lost life as the end of the game while planning.
        life_loss_reward: reward for a lost life while planning; scores do not count it.
        reuse: keep the subtree of the played move for the next search.
        exploration: temperatures of the moves, and the random moves in between. The `persistence` is also that of
            random play at leaves, and of the moves if the search found nothing.
    """

    search: Search
    rollout_depth: int | None = 20
    life_loss_ends: bool = True
    life_loss_reward: float = 0.0
    reuse: bool = True
    exploration: Exploration = BEST

    def __post_init__(self) -> None:
        check_range("RulesPlay.rollout_depth", self.rollout_depth, 1)
        check_range("RulesPlay.life_loss_reward", self.life_loss_reward)

    columns: ClassVar[tuple[str, ...]] = ("search_policy", "root_value")
    wants_clones: ClassVar[bool] = True

    def check(self, learner: Learner, data: ReplayData) -> None:
        """Raise a UserError if the world cannot be cloned, or the settings do not fit its protocol."""
        environment = self.environment(data, 1, 0)
        self.actor(Stage(environment, lambda purpose: np.random.default_rng(0)))
        environment.close()

    def actor(self, stage: Stage) -> RulesActor:
        """Make an actor that plans from clones of the environments, which must be emulators."""
        environment = stage.environment
        if not isinstance(environment, AtariEmulators):
            environment.clone()  # says why it cannot
            raise UserError(f"RulesPlay plans in Atari's emulator: got {type(environment).__name__}")
        dynamics = EmulatorDynamics(
            environment,
            self.life_loss_ends,
            self.life_loss_reward,
            persistence=self.exploration.persistence,
            generator=stage.source("chance"),
        )
        discount = self.search.effective_discount
        rollouts = Rollouts(dynamics, self.rollout_depth, discount, generator=stage.source("rollouts"))
        source = stage.source("search")
        return RulesActor(dynamics, self.search, rollouts, source, self.reuse, stage.greedy, self.exploration)

    def describe(self, greedy: bool) -> str:
        """Return a short description."""
        return f"{self.search}, rollouts of {self.rollout_depth or 'any'} decisions" + _epsilon(self.exploration)


def usual(policy: Policy | None) -> Play:
    """Return the default way of playing: by the policy, or at random if there is no policy."""
    return RandomPlay() if policy is None else PolicyPlay()


def _parts(stage: Stage) -> tuple[WorldModel, Policy]:
    if stage.model is None or stage.policy is None:
        name = "nothing that is trained" if stage.model is None else type(stage.model).__name__
        raise UserError(f"a policy is needed, that of an Agent or of a world model such as MuZero: {name} has none")
    return stage.model, stage.policy


def _epsilon(exploration: Exploration) -> str:
    return f", epsilon {exploration.epsilon:g}{_held(exploration)}" if exploration.epsilon else ""


def _held(exploration: Exploration) -> str:
    return "" if exploration.persistence is None else f", held n steps by n^-{exploration.persistence:g}"
