"""Actors that play a constant action, at random, by a policy, or by a search in a world model."""

from __future__ import annotations

from abc import abstractmethod
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.acting import Actor, Moment
from modules.batch import push
from modules.imagination import evaluating
from modules.policies.policy import Policy
from modules.world_model import WorldModel
from pipelines.acting.exploration import Exploration, Explorer, best
from pipelines.search.evaluators import NetworkEvaluator
from pipelines.search.graphed import Graphed
from pipelines.search.rules import Gumbel
from pipelines.search.search import Result, Search


class RandomActor(Actor):
    """Plays every action with the same probability.

    Args:
        num_actions: number of actions, A.
        generator: generator of the draws.
        exploration: settings of exploration; only `persistence` is used.
    """

    def __init__(
        self, num_actions: int, generator: np.random.Generator, exploration: Exploration = Exploration()
    ) -> None:
        self.num_actions = num_actions
        self.generator = generator
        self.explorer = Explorer(exploration, generator)

    def act(self, moment: Moment) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Draw an action (N,) int64 for every environment, among the legal ones."""
        legal, num_envs = moment.legal_actions, len(moment.is_first)
        if legal is None:
            drawn = self.generator.integers(self.num_actions, size=num_envs)
        else:
            drawn = best(self.generator.random(legal.shape), legal)
        self.explorer.forget(moment.is_first)
        return self.explorer.hold(drawn, drawn, np.ones(num_envs, bool), legal), {}

    def state_dict(self) -> dict[str, Any]:
        """Return the generator's state and the held actions."""
        return {"generator": self.generator.bit_generator.state, **self.explorer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`."""
        self.generator.bit_generator.state = state["generator"]
        self.explorer.load_state_dict(state)


class ConstantActor(Actor):
    """Plays the same action at every step: a control that some games reward (holding UP scores 22 in Freeway).

    Args:
        action: index of the action.
    """

    def __init__(self, action: int) -> None:
        self.action = action

    def act(self, moment: Moment) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the action (N,) int64 of every environment."""
        return np.full(len(moment.is_first), self.action), {}


class ModelActor(Actor):
    """Acts on the states of a world model, which observes every moment.

    Args:
        model: world model that is built and has its spec.
        policy: policy on the model's features.
        generator: generator of the draws.
        exploration: settings of exploration.
    """

    def __init__(
        self,
        model: WorldModel,
        policy: Policy,
        generator: np.random.Generator,
        exploration: Exploration = Exploration(),
    ) -> None:
        self.model = model
        self.policy = policy
        self.generator = generator
        self.exploration = exploration
        self.explorer = Explorer(exploration, generator)
        self.observation: Tensor | None = None
        self.state: Tensor | None = None
        self.action: Tensor | None = None

    @torch.no_grad()
    def act(self, moment: Moment) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Observe the moment, and return actions (N,) int64 and the extra columns of their rows."""
        frames, first = self._stack(moment)
        if self.state is None:
            num_envs = len(moment.is_first)
            state, action = self.model.initial(num_envs), torch.zeros(num_envs, dtype=torch.int64)
            self.state, self.action = state, action.to(state.device)
        assert self.action is not None
        self.explorer.forget(moment.is_first)
        with evaluating(self.model, self.policy):
            self.state = self.model.observe(self.state, self.action.masked_fill(first, 0), frames, first)
            actions, extras = self.choose(self.state, moment.legal_actions)
        self.action = torch.from_numpy(actions).to(self.state.device)
        return actions, extras

    def follow(self, progress: Fraction, real_steps: int) -> None:
        """Tell the policy how many real steps were played: its own exploration may depend on them."""
        self.policy.real_steps = real_steps

    @abstractmethod
    def choose(self, state: Tensor, legal_actions: np.ndarray | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Map the model's states (N, *state_shape) to actions (N,) int64, and to the extra columns of their rows."""

    def take(self, scores: np.ndarray, legal_actions: np.ndarray | None) -> np.ndarray:
        """Return the actions (N,) of the highest scores (N, A), or random actions as `exploration` says."""
        return self.explorer.explore(best(scores, legal_actions), scores.shape[1], legal_actions)

    def _stack(self, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return observations (N, stack * C, H, W) and is_first (N,) on the model's device."""
        assert self.model.spec is not None
        newest = torch.from_numpy(moment.observation).to(self.model.device)
        first = torch.from_numpy(moment.is_first).to(self.model.device)
        stacked = push(self.observation, newest, first, self.model.spec.frame_stack)
        if self.model.spec.frame_stack > 1:
            self.observation = stacked
        return stacked, first

    def state_dict(self) -> dict[str, Any]:
        """Return the generator's state, the held actions, and the last observation, model state and action."""
        seen = {name: getattr(self, name) for name in ("observation", "state", "action")}
        kept = {name: None if tensor is None else tensor.cpu() for name, tensor in seen.items()}
        return {"generator": self.generator.bit_generator.state, **self.explorer.state_dict(), **kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`."""
        self.generator.bit_generator.state = state["generator"]
        self.explorer.load_state_dict(state)
        for name in ("observation", "state", "action"):
            tensor = state.get(name)
            setattr(self, name, None if tensor is None else tensor.to(self.model.device))


class PolicyActor(ModelActor):
    """Plays by a policy on the states of a world model.

    The actor leaves the columns log_prob and value (N,) float32. log_prob is the policy's own: it ignores
    `exploration`.

    Args:
        model: world model that is built and has its spec.
        policy: policy on the model's features.
        generator: generator of the draws.
        greedy: always play the likeliest action.
        exploration: settings of exploration; all but the temperatures are used.
    """

    def __init__(
        self,
        model: WorldModel,
        policy: Policy,
        generator: np.random.Generator,
        greedy: bool = False,
        exploration: Exploration = Exploration(),
    ) -> None:
        super().__init__(model, policy, generator, exploration)
        self.greedy = greedy

    def choose(self, state: Tensor, legal_actions: np.ndarray | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Draw actions from the policy, or return its likeliest actions if `greedy`."""
        logits, value = self.policy(self.model.features(state))
        log_probs = logits.float().log_softmax(dim=1).cpu().numpy()
        scores = log_probs if self.greedy else log_probs + self.generator.gumbel(size=log_probs.shape)
        actions = self.take(scores, legal_actions)
        log_prob = np.take_along_axis(log_probs, actions[:, None], axis=1)[:, 0]
        return actions, {"log_prob": log_prob, "value": value.float().cpu().numpy()}


class SearchActor(ModelActor):
    """Plays by a search in a world model from the observed state, guided by a policy's probabilities and values.

    The actor leaves the columns search_policy (N, A) and root_value (N,) float32 as targets to learn from.

    Args:
        model: world model that is built and has its spec; the search plans with its `step`.
        policy: policy that gives prior and value.
        search: settings of the search.
        generator: generator of the noise and the draws.
        greedy: play the best move without noise.
        exploration: temperatures of the moves, and the random actions in between.

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
        super().__init__(model, policy, generator, exploration)
        model.require("step", "reward", by="a search")
        search = search.discounting_as(policy, model)
        self.search = search.greedy() if greedy else search
        self.greedy = greedy
        self.temperature = 0.0
        self._cool(Fraction(0))
        self.evaluate = NetworkEvaluator(model, policy)
        self.expand = Graphed(model, self.evaluate) if model.capturable else None
        self.found: Result | None = None
        """Result of the last search."""

    def follow(self, progress: Fraction, real_steps: int) -> None:
        """Set the temperature of this part of the run, and the real steps that the policy's exploration depends on."""
        super().follow(progress, real_steps)
        self._cool(progress)

    def _cool(self, progress: Fraction) -> None:
        # A Gumbel search draws by its own noise instead.
        if not self.greedy and not isinstance(self.search.rule, Gumbel):
            self.temperature = self.exploration.temperature(progress)

    def choose(self, state: Tensor, legal_actions: np.ndarray | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Search, and return the chosen moves and the results of the search."""
        found = self.search.run(
            state, self.model, self.evaluate, legal=legal_actions, generator=self.generator, expand=self.expand
        )
        self.found = found
        moves = np.eye(found.policy.shape[1])[found.draw(self.temperature, self.generator)]
        return self.take(moves, legal_actions), {"search_policy": found.policy, "root_value": found.value}
