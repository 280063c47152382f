"""A tiny decision problem whose values are known: eleven states, three actions, steps and ends by a table."""

import torch
import torch.nn.functional as F

from modules.batch import Batch
from modules.world_model import Spec, Step, WorldModel

NUM_STATES, NUM_ACTIONS, DISCOUNT = 11, 3, 0.9


class MDP(WorldModel):
    """Knows the rules by heart; its state is a number, its features are one-hot. Its only parameter must not learn."""

    capabilities = frozenset({"step", "reward"})

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(seed)
        shape = NUM_STATES, NUM_ACTIONS
        self.after = torch.randint(NUM_STATES, shape, generator=source)
        self.earns = torch.randn(shape, generator=source)
        self.continues = (torch.rand(shape, generator=source) > 0.2).float()
        self.one = torch.nn.Parameter(torch.ones(()))
        self.build_from(Spec((1,), 1, NUM_ACTIONS))

    def build(self, spec: Spec) -> None:
        self.state_shape, self.feature_shape = (), (NUM_STATES,)

    def encode(self, batch: Batch) -> torch.Tensor:
        return batch.observation[..., 0].long()

    def step(self, state: torch.Tensor, action: torch.Tensor) -> Step:
        return Step(self.after[state, action], self.earns[state, action], self.continues[state, action])

    def features(self, state: torch.Tensor) -> torch.Tensor:
        return F.one_hot(state, NUM_STATES).float() * self.one

    def optimal(self) -> torch.Tensor:
        """Q*(s, a) by value iteration, (S, A)."""
        values = torch.zeros(NUM_STATES, NUM_ACTIONS)
        for _ in range(300):
            values = self.earns + DISCOUNT * self.continues * values.max(dim=1).values[self.after]
        return values

    def values(self, probabilities: torch.Tensor) -> torch.Tensor:
        """V of a policy (S, A), exactly, (S,)."""
        matrix = torch.zeros(NUM_STATES, NUM_STATES)
        for action in range(NUM_ACTIONS):
            weight = probabilities[:, action] * DISCOUNT * self.continues[:, action]
            matrix[torch.arange(NUM_STATES), self.after[:, action]] += weight
        reward = (probabilities * self.earns).sum(dim=1)
        return torch.linalg.solve(torch.eye(NUM_STATES) - matrix, reward)

    def play(self, envs: int, rows: int, limit: int = 7) -> Batch:
        """Real rows (num_envs, rows) of random play: episodes end, or are cut after `limit` steps; the next opens."""
        state = torch.randint(NUM_STATES, (envs,))
        is_first, is_last = torch.ones(envs, dtype=torch.bool), torch.zeros(envs, dtype=torch.bool)
        age = torch.zeros(envs)
        columns = {name: [] for name in ("action", "reward", "continuation", "is_first", "is_last", "observation")}
        for _ in range(rows):
            action = torch.randint(NUM_ACTIONS, (envs,))
            after, reward, continuation = self.step(state, action)
            reward, continuation = torch.where(is_last, 0.0, reward), torch.where(is_last, 1.0, continuation)
            row = (action, reward, continuation, is_first, is_last, state[:, None].float())
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
            age = torch.where(is_last, 0, age + 1)
            state = torch.where(is_last, torch.randint(NUM_STATES, (envs,)), after)
            is_first, is_last = is_last, ~is_last & ((continuation == 0) | (age == limit))
        return Batch(**{name: torch.stack(column, dim=1) for name, column in columns.items()})


def rows(state, action, reward, continuation=None, is_last=None, is_first=None, **extras) -> Batch:
    """Make (B, T) rows of nested lists."""
    action = torch.tensor(action)
    nothing = torch.zeros_like(action, dtype=torch.bool)
    return Batch(
        state=torch.tensor(state),
        action=action,
        reward=torch.tensor(reward),
        continuation=torch.ones(action.shape) if continuation is None else torch.tensor(continuation),
        is_first=nothing if is_first is None else torch.tensor(is_first),
        is_last=nothing if is_last is None else torch.tensor(is_last),
        extras={name: torch.tensor(value) for name, value in extras.items()},
    )
