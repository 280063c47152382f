"""A table of the last outcomes: the world model of Dyna-Q (Sutton & Barto, 2nd edition, section 8.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.batch import Batch
from modules.errors import UserError
from modules.world_model import Loss, Spec, Step, WorldModel


class Tabular(WorldModel):
    """Stores the last outcome of every state and action; it assumes a deterministic environment.

    An observation is the index of a state. Each environment has its own range of states, so that one table holds
    independent learners: environment l owns the states from l * num_states up to, but not including, (l + 1) *
    num_states. The features of a state are its one-hot vector, on which a linear policy is a table.

    The table learns in `loss`, only in training mode, and has no gradient. An untried action is predicted to stay in
    its state with reward 0.

    Args:
        num_states: number of states of one environment.
        num_envs: number of environments, each with its own states.
        exploration_bonus: coefficient kappa of Dyna-Q+ (section 8.3): rehearsing an action last tried tau steps ago
            earns a bonus of kappa * sqrt(tau), and untried actions of known states are rehearsed too. 0 is Dyna-Q.
    """

    capabilities = frozenset({"step", "reward", "decode"})
    tried: Tensor
    successor: Tensor
    reward: Tensor
    continuation: Tensor
    tried_at: Tensor
    clock: Tensor

    def __init__(self, num_states: int, num_envs: int = 1, exploration_bonus: float = 0.0) -> None:
        super().__init__()
        if num_states < 1 or num_envs < 1 or exploration_bonus < 0:
            raise UserError(
                "tables need num_states >= 1, num_envs >= 1 and exploration_bonus >= 0: "
                f"got {num_states}, {num_envs}, {exploration_bonus}"
            )
        self.num_states = num_states
        self.num_envs = num_envs
        self.exploration_bonus = exploration_bonus

    def build(self, spec: Spec) -> None:
        """Build the empty tables."""
        if spec.observation_shape != (1,) or spec.frame_stack != 1:
            raise UserError(
                "a table needs observations of one number, the index of a state: "
                f"got shape {spec.observation_shape}, stacked {spec.frame_stack} times"
            )
        size = self.num_states * self.num_envs
        self.state_shape, self.feature_shape = (), (size,)
        shape = (size, spec.num_actions)
        self.register_buffer("tried", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("successor", torch.arange(size)[:, None].repeat(1, spec.num_actions))
        self.register_buffer("reward", torch.zeros(shape))
        self.register_buffer("continuation", torch.ones(shape))
        # The clock of an environment counts its transitions; an untried action counts as tried at time 0.
        self.register_buffer("tried_at", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("clock", torch.zeros(self.num_envs, dtype=torch.int64))

    @torch.no_grad()
    def loss(self, batch: Batch) -> Loss:
        """Write the outcomes of the rows into the table in order of time, so that later rows overwrite earlier ones.

        Returns:
            No total, the 0-1 loss of the table's predictions before the update (untried is wrong), and the states.

        Raises:
            UserError: an observation is not a state of the table.
        """
        states = self.encode(batch)
        low, high = states.aminmax()
        if low < 0 or high >= len(self.tried):
            raise UserError(
                f"state {int(low if low < 0 else high)} is not among the {len(self.tried)} of the table: "
                f"num_states is {self.num_states}, num_envs is {self.num_envs}"
            )
        errors = []
        for t, has_successor in enumerate(batch.has_successor().unbind(1)):
            where = states[has_successor, t], batch.action[has_successor, t]
            after = states[has_successor, t + 1], batch.reward[has_successor, t], batch.continuation[has_successor, t]
            tables = self.successor, self.reward, self.continuation
            agrees = [table[where] == seen for table, seen in zip(tables, after, strict=True)]
            errors.append(~(self.tried[where] & torch.stack(agrees).all(dim=0)))
            if self.training:
                for table, seen in zip(tables, after, strict=True):
                    table[where] = seen
                env = where[0] // self.num_states
                self.clock.index_add_(0, env, torch.ones_like(env))
                self.tried[where], self.tried_at[where] = True, self.clock[env]
        wrong = torch.cat(errors).float()
        return Loss(None, {"loss": wrong.sum() / max(1, len(wrong))}, states)

    def initial(self, batch_size: int) -> Tensor:
        """Return state 0 as a placeholder: `observe` does not use the previous state."""
        return torch.zeros(batch_size, dtype=torch.int64, device=self.tried.device)

    def observe(self, state: Tensor, action: Tensor, observation: Tensor, is_first: Tensor) -> Tensor:
        """Return the observed index, (B,) int64."""
        return observation[:, 0].long()

    def step(self, state: Tensor, action: Tensor) -> Step:
        """Look up the last outcomes of (B,) actions."""
        where = state, action
        return Step(self.successor[where], self.reward[where], self.continuation[where])

    def features(self, state: Tensor) -> Tensor:
        """Return one-hot vectors (B, num_envs * num_states)."""
        return F.one_hot(state, len(self.tried)).float()

    def decode(self, state: Tensor) -> Tensor:
        """Return the observation (B, 1)."""
        return state.float()[:, None]

    def recall(self, envs: Tensor, num_pairs: int) -> tuple[Tensor, Tensor]:
        """Draw known states of given environments (B,) and one tried action of each state, both uniformly.

        With an exploration bonus, the action is drawn from all actions.

        Returns:
            states (B, num_pairs) and actions (B, num_pairs). Every environment must have seen a transition.
        """
        known = self.tried.any(dim=-1).view(self.num_envs, -1)[envs].float()
        states = torch.multinomial(known, num_pairs, replacement=True) + self.num_states * envs[:, None]
        choices = self.tried[states].flatten(0, 1) | (self.exploration_bonus > 0)
        return states, torch.multinomial(choices.float(), 1).view_as(states)

    def rehearse(self, states: Tensor, num_steps: int) -> Batch:
        """Dream single steps from the pairs that `recall` draws in the environments of states (B,).

        Returns:
            (B, 2 * num_steps) rows in the order of learning: every step is an episode of two rows.
        """
        envs = states // self.num_states
        states, actions = self.recall(envs, num_steps)
        successors, rewards, continuations = self.step(states, actions)
        if self.exploration_bonus > 0:
            elapsed = self.clock[envs][:, None] - self.tried_at[states, actions]
            rewards = rewards + self.exploration_bonus * elapsed.sqrt()
        nothing = torch.zeros_like(states, dtype=torch.bool)

        def rows(episode_start: Tensor, closing: Tensor) -> Tensor:
            return torch.stack([episode_start, closing], dim=-1).flatten(1)

        return Batch(
            action=rows(actions, torch.zeros_like(actions)),
            reward=rows(rewards, torch.zeros_like(rewards)),
            continuation=rows(continuations, torch.ones_like(continuations)),
            is_first=rows(~nothing, nothing),
            is_last=rows(nothing, ~nothing),
            state=rows(states, successors),
        )
