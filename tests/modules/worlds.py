"""Small worlds that can be differentiated."""

import torch

from modules.world_model import Spec, Step, WorldModel


class Smooth(WorldModel):
    """Two numbers under two random matrices, in double precision: everything is a smooth function of everything."""

    capabilities = frozenset({"step", "reward", "gradient"})
    state_shape = feature_shape = (2,)

    def __init__(self) -> None:
        super().__init__()
        self.build_from(Spec((2,), 1, 3))

    def build(self, spec: Spec) -> None:
        source = torch.Generator().manual_seed(1)
        self.matrix, self.push, self.price = (
            torch.nn.Parameter(torch.randn(shape, generator=source, dtype=torch.float64))
            for shape in ((2, 2), (3, 2), (2,))
        )

    def step(self, state, action):
        if not action.is_floating_point():
            action = torch.nn.functional.one_hot(action, 3).double()
        after = (state @ self.matrix + action @ self.push).tanh()
        return Step(after, after @ self.price, after.sum(dim=1).sigmoid())


class Line(WorldModel):
    """A place on a line, which three actions leave, keep or move on; it earns more the nearer it is to 0."""

    capabilities = frozenset({"step", "reward", "gradient"})
    state_shape = feature_shape = (1,)
    moves = torch.tensor([-0.2, 0.0, 0.2])

    def build(self, spec: Spec) -> None:
        pass

    def step(self, state, action):
        moved = self.moves[action] if not action.is_floating_point() else action @ self.moves
        after = state + moved[:, None]
        return Step(after, -after[:, 0].abs(), torch.ones(len(state)))
