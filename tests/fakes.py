"""A perfect tiny world instead of mocks: a dot between two walls, as an environment and as a model that knows it."""

import numpy as np
import torch

from datamodules.collector import Collector
from datamodules.environments.environment import Transition, VectorEnvironment
from datamodules.replay.store import ReplayStore
from modules.world_model import Loss, Spec, Step, WorldModel
from pipelines.acting.actors import RandomActor

SIZE = 12
GROUND, LEFT_WALL, RIGHT_WALL, DOT = 40, 90, 140, 230
MEANINGS = ("NOOP", "LEFT", "RIGHT", "DOWN")
SPEC = Spec((1, SIZE, SIZE), 4, len(MEANINGS))


def render(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(B,) positions to (B, 1, SIZE, SIZE) uint8."""
    frame = torch.full((len(x), 1, SIZE, SIZE), GROUND, dtype=torch.uint8)
    frame[..., 0], frame[..., -1] = LEFT_WALL, RIGHT_WALL
    frame[torch.arange(len(x)), 0, y, x] = DOT
    return frame


def locate(frame: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, 1, SIZE, SIZE) uint8 to the positions x, y (B,)."""
    place = (frame.flatten(1) == DOT).long().argmax(dim=1)
    return place % SIZE, place // SIZE


def move(x: torch.Tensor, y: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Positions and actions (B,) to the next x, y, the reward (-1 left, +1 right) and whether a wall ended it."""
    x = x + (action == 2).long() - (action == 1).long()
    y = (y + (action == 3).long()) % SIZE
    reward = (x >= SIZE - 1).float() - (x <= 0).float()
    return x.clamp(0, SIZE - 1), y, reward, reward != 0


class DotWorld(VectorEnvironment):
    """N dots that walk under the actions; an episode ends at a wall, and is cut after `limit` steps."""

    observation_shape = SPEC.observation_shape
    num_actions = SPEC.num_actions
    action_meanings = MEANINGS

    def __init__(self, num_envs: int, limit: int = 25, seed: int = 0) -> None:
        self.num_envs, self.limit, self.seed = num_envs, limit, seed
        self.description = {"game": "dot", "limit": limit}
        self.episode = np.zeros(num_envs, np.int64)
        """(N,) how many episodes were opened: which one the last observation belongs to."""

    def reset(self, stream: int = 0) -> np.ndarray:
        self.generator, self.seeds = np.random.default_rng([self.seed, stream]), np.arange(self.num_envs)
        self.x, self.y, self.elapsed = (torch.zeros(self.num_envs, dtype=torch.int64) for _ in range(3))
        self._open(torch.ones(self.num_envs, dtype=torch.bool))
        return render(self.x, self.y).numpy()

    def step(self, actions: np.ndarray) -> Transition:
        opens = self.closed
        x, y, reward, terminated = move(self.x, self.y, torch.from_numpy(actions))
        self.x, self.y = torch.where(opens, self.x, x), torch.where(opens, self.y, y)
        self.elapsed += 1
        terminated = terminated & ~opens
        truncated = (self.elapsed >= self.limit) & ~terminated & ~opens
        self._open(opens)
        self.closed = terminated | truncated
        reward = torch.where(opens, 0.0, reward)
        return Transition(render(self.x, self.y).numpy(), reward.numpy(), terminated.numpy(), truncated.numpy())

    def _open(self, where: torch.Tensor) -> None:
        x = torch.from_numpy(self.generator.integers(1, SIZE - 1, self.num_envs))
        y = torch.from_numpy(self.generator.integers(0, SIZE, self.num_envs))
        self.x, self.y = torch.where(where, x, self.x), torch.where(where, y, self.y)
        self.elapsed = torch.where(where, 0, self.elapsed)
        self.closed = torch.zeros(self.num_envs, dtype=torch.bool)
        self.episode = self.episode + where.numpy()

    def close(self) -> None:
        pass


class PerfectModel(WorldModel):
    """Knows the rules of DotWorld; its state is the frame stack. Its only parameter must stay as it is."""

    capabilities = frozenset({"step", "reward", "decode"})

    def __init__(self) -> None:
        super().__init__()
        self.build_from(SPEC)

    def build(self, spec: Spec) -> None:
        self.state_shape = self.feature_shape = (spec.frame_stack, SIZE, SIZE)
        self.one = torch.nn.Parameter(torch.ones(()))

    def initial(self, batch_size: int) -> torch.Tensor:
        return torch.zeros(batch_size, *self.state_shape, dtype=torch.uint8)

    def observe(self, state, action, observation, is_first) -> torch.Tensor:
        return observation

    def step(self, state: torch.Tensor, action: torch.Tensor) -> Step:
        x, y, reward, terminated = move(*locate(state[:, -1:]), action)
        return Step(torch.cat([state[:, 1:], render(x, y)], dim=1), reward * self.one, 1 - terminated.float())

    def features(self, state: torch.Tensor) -> torch.Tensor:
        return state.float() / 255

    def decode(self, state: torch.Tensor) -> torch.Tensor:
        return state[:, -1:].float() / 255


class PerfectCartPole(WorldModel):
    """Knows the equations of Gymnasium's CartPole; its state is the vector."""

    capabilities = frozenset({"step", "reward", "decode"})
    state_shape = feature_shape = (4,)

    def build(self, spec: Spec) -> None:
        self.one = torch.nn.Parameter(torch.ones(()))

    def loss(self, batch):
        loss = (self.one - 2) ** 2
        return Loss(loss, {"loss": loss.detach()})

    def initial(self, batch_size: int) -> torch.Tensor:
        return torch.zeros(batch_size, 4)

    def observe(self, state, action, observation, is_first) -> torch.Tensor:
        return observation

    def encode(self, batch) -> torch.Tensor:
        return batch.observation

    def step(self, state: torch.Tensor, action: torch.Tensor) -> Step:
        _, speed, angle, turn = state.unbind(1)
        force = 20.0 * action - 10.0
        push = (force + 0.05 * turn**2 * angle.sin()) / 1.1
        turning = (9.8 * angle.sin() - angle.cos() * push) / (0.5 * (4 / 3 - 0.1 * angle.cos() ** 2 / 1.1))
        moving = push - 0.05 * turning * angle.cos() / 1.1
        after = state + 0.02 * torch.stack([speed, moving, turn, turning], dim=1)
        stands = (after[:, 0].abs() <= 2.4) & (after[:, 2].abs() <= 12 * torch.pi / 180)
        return Step(after, torch.ones(len(state)), stands.float())

    def decode(self, state: torch.Tensor) -> torch.Tensor:
        return state


def play(
    path, num_rows: int, num_envs: int = 4, num_validation_envs: int = 1, limit: int = 25, seed: int = 0
) -> ReplayStore:
    """Return a store of DotWorld under random actions."""
    store = ReplayStore.create(
        path,
        observation_shape=DotWorld.observation_shape,
        num_actions=DotWorld.num_actions,
        num_envs=num_envs,
        num_validation_envs=num_validation_envs,
        capacity=num_rows,
    )
    collector = Collector(DotWorld(num_envs, limit, seed), store)
    actor = RandomActor(DotWorld.num_actions, np.random.default_rng(seed))
    for _ in range(num_rows):
        collector.step(actor)
    return store
