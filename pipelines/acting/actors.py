"""Who chooses the actions."""

from __future__ import annotations

from abc import abstractmethod
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.acting import Actor, Moment
from modules.batch import push
from modules.errors import UserError
from modules.imagination import evaluating
from modules.policies.policy import Policy
from modules.world_model import WorldModel
from pipelines.acting.exploration import Exploration
from pipelines.search.evaluators import NetworkEvaluator
from pipelines.search.graphed import Graphed
from pipelines.search.rules import Gumbel
from pipelines.search.search import Result, Search


class RandomActor(Actor):
    """Every action with the same probability.

    Args:
        num_actions: A.
        generator: generator of the draws.
        persistence: mu of epsilon-z-greedy exploration (Dabney et al. 2021): an action is held for n steps, which are
            drawn from a zeta distribution, n^-mu, where all actions are legal. Null draws anew at every step.
    """

    def __init__(self, num_actions: int, generator: np.random.Generator, persistence: float | None = None) -> None:
        if persistence is not None and persistence <= 1:
            raise UserError(f"persistence of random play must be more than 1: got {persistence}")
        self.num_actions = num_actions
        self.generator = generator
        self.persistence = persistence
        self.held = np.zeros(0, np.int64)
        self.left = np.zeros(0, np.int64)

    def act(self, moment: Moment) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Draw an action (N,) int64 for every environment, among the legal ones."""
        legal = moment.legal_actions
        if legal is None:
            drawn = self.generator.integers(self.num_actions, size=len(moment.is_first))
            return drawn if self.persistence is None else self._hold(drawn, moment.is_first), {}
        scores = np.where(legal, self.generator.random(legal.shape), -1)
        return scores.argmax(axis=1), {}

    def _hold(self, drawn: np.ndarray, is_first: np.ndarray) -> np.ndarray:
        """Go on with the actions that are held; take up those drawn where none is."""
        if len(self.left) != len(drawn):
            self.held, self.left = drawn, np.zeros_like(drawn)
        renewed = is_first | (self.left == 0)
        assert self.persistence is not None
        durations = self.generator.zipf(self.persistence, size=len(drawn))
        self.held = np.where(renewed, drawn, self.held)
        self.left = np.where(renewed, durations, self.left) - 1
        return self.held

    def state_dict(self) -> dict[str, Any]:
        """Return the generator's state and the actions that are held."""
        held = {"held": torch.from_numpy(self.held.copy()), "left": torch.from_numpy(self.left.copy())}
        return {"generator": self.generator.bit_generator.state, **held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on drawing where `state_dict` was taken."""
        self.generator.bit_generator.state = state["generator"]
        if "held" in state:
            self.held, self.left = state["held"].numpy().copy(), state["left"].numpy().copy()


class ModelActor(Actor):
    """Who acts on the states of a world model, which observes whatever happens.

    Args:
        model: built, with its spec.
        policy: acts by the model's features.
        generator: generator of the draws.
        epsilon: probability of a random action instead.
    """

    def __init__(self, model: WorldModel, policy: Policy, generator: np.random.Generator, epsilon: float = 0.0) -> None:
        self.model = model
        self.policy = policy
        self.generator = generator
        self.epsilon = epsilon
        self.observation: Tensor | None = None
        self.state: Tensor | None = None
        self.action: Tensor | None = None

    @torch.no_grad()
    def act(self, moment: Moment) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Observe the moment and choose actions (N,) int64 and the columns of their rows."""
        frames, first = self._stack(moment)
        if self.state is None:
            num_envs = len(moment.is_first)
            state, action = self.model.initial(num_envs), torch.zeros(num_envs, dtype=torch.int64)
            self.state, self.action = state, action.to(state.device)
        assert self.action is not None
        with evaluating(self.model, self.policy):
            self.state = self.model.observe(self.state, self.action.masked_fill(first, 0), frames, first)
            actions, extras = self.choose(self.state, moment.legal_actions)
        self.action = torch.from_numpy(actions).to(self.state.device)
        return actions, extras

    @abstractmethod
    def choose(self, state: Tensor, legal_actions: np.ndarray | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Map the model's states (N, *state_shape) to actions (N,) int64, and to the extra columns of their rows."""

    def take(self, scores: np.ndarray, legal_actions: np.ndarray | None) -> np.ndarray:
        """Return the actions (N,) of the highest scores (N, A), or with a probability of epsilon any."""
        if self.epsilon:
            random = self.generator.random(len(scores)) < self.epsilon
            scores = np.where(random[:, None], self.generator.random(scores.shape), scores)
        if legal_actions is not None:
            scores = np.where(legal_actions, scores, -np.inf)
        return scores.argmax(axis=1)

    def _stack(self, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return observations (N, stack * C, H, W) on the model's device, and is_first there."""
        assert self.model.spec is not None
        newest = torch.from_numpy(moment.observation).to(self.model.device)
        first = torch.from_numpy(moment.is_first).to(self.model.device)
        stacked = push(self.observation, newest, first, self.model.spec.frame_stack)
        if self.model.spec.frame_stack > 1:
            self.observation = stacked
        return stacked, first

    def state_dict(self) -> dict[str, Any]:
        """Return the generator's state, and what was observed and done last."""
        seen = {name: getattr(self, name) for name in ("observation", "state", "action")}
        kept = {name: None if tensor is None else tensor.cpu() for name, tensor in seen.items()}
        return {"generator": self.generator.bit_generator.state, **kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.generator.bit_generator.state = state["generator"]
        for name in ("observation", "state", "action"):
            tensor = state.get(name)
            setattr(self, name, None if tensor is None else tensor.to(self.model.device))


class PolicyActor(ModelActor):
    """A policy on the states of a world model.

    It leaves the columns log_prob and value (N,) float32, of the policy itself: random actions of `epsilon` do not
    count in log_prob.

    Args:
        model: built, with its spec.
        policy: acts by the model's features.
        generator: generator of the draws.
        greedy: always take the likeliest action.
        exploration: probability of a random action instead.
    """

    def __init__(
        self,
        model: WorldModel,
        policy: Policy,
        generator: np.random.Generator,
        greedy: bool = False,
        exploration: Exploration = Exploration(),
    ) -> None:
        super().__init__(model, policy, generator, exploration.epsilon)
        self.greedy = greedy

    def choose(self, state: Tensor, legal_actions: np.ndarray | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Draw by the policy's probabilities."""
        logits, value = self.policy(self.model.features(state))
        log_probs = logits.float().log_softmax(dim=1).cpu().numpy()
        scores = log_probs if self.greedy else log_probs + self.generator.gumbel(size=log_probs.shape)
        actions = self.take(scores, legal_actions)
        log_prob = np.take_along_axis(log_probs, actions[:, None], axis=1)[:, 0]
        return actions, {"log_prob": log_prob, "value": value.float().cpu().numpy()}


class SearchActor(ModelActor):
    """A search in a world model from whatever it observes, guided by a policy's probabilities and values.

    It leaves the columns search_policy (N, A) and root_value (N,) float32: what the search found out, to learn from.

    Args:
        model: built, with its spec; it plans in its `step`.
        policy: prior and value.
        search: how it plans.
        generator: generator of the noise and the draws.
        greedy: play the best move, without noise.
        exploration: temperatures of the moves, and the probability of a random action instead.

    Raises:
        UserError: the model does not predict states and rewards.
    """

    def __init__(
        self,
        model: WorldModel,
        policy: Policy,
        search: Search,
        generator: np.random.Generator,
        greedy: bool = False,
        exploration: Exploration = Exploration(),
    ) -> None:
        super().__init__(model, policy, generator, exploration.epsilon)
        model.require("step", "reward", by="a search")
        search = search.discounting_as(policy, model)
        self.search = search.greedy() if greedy else search
        self.greedy = greedy
        self.exploration = exploration
        self.temperature = 0.0
        self.follow(Fraction(0))
        self.evaluate = NetworkEvaluator(model, policy)
        self.expand = Graphed(model, self.evaluate) if model.capturable else None
        self.found: Result | None = None
        """What the last search found."""

    def follow(self, progress: Fraction) -> None:
        """Draw moves at the temperature of this part of the run; a Gumbel search draws by its own noise as ever."""
        if not self.greedy and not isinstance(self.search.rule, Gumbel):
            self.temperature = self.exploration.temperature(progress)

    def choose(self, state: Tensor, legal_actions: np.ndarray | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Search, and play what it found."""
        found = self.search.run(
            state, self.model, self.evaluate, legal=legal_actions, generator=self.generator, expand=self.expand
        )
        self.found = found
        moves = np.eye(found.policy.shape[1])[found.draw(self.temperature, self.generator)]
        return self.take(moves, legal_actions), {"search_policy": found.policy, "root_value": found.value}
