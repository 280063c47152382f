"""Tabular Q-learning and Dyna-Q (Sutton & Barto, 2nd edition, sections 6.5 and 8.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from modules.batch import Batch
from modules.errors import UserError, check_range
from modules.policies.policy import Policy
from modules.states.tabular import Tabular
from modules.world_model import Loss, WorldModel


class TabularQ(Policy):
    """A table of action values that learns from the newest transition of every window, then from rehearsed ones.

    This is the order of the box "Tabular Dyna-Q" in section 8.2: act, learn from what happened, update the model, plan.
    Backups run one after the other, so that later backups see the results of earlier ones; all environments run in
    parallel. The table learns in `loss`, only in training mode, and has no gradient.

    Args:
        discount: discount factor gamma.
        step_size: step size alpha of a backup.
        epsilon: probability of a uniformly random action; otherwise a uniformly random best action is taken.
        planning_steps: number n of rehearsed backups per real transition; 0 is Q-learning.
    """

    table: Tensor
    """(S, A): action values."""

    def __init__(
        self, discount: float = 0.95, step_size: float = 0.1, epsilon: float = 0.1, planning_steps: int = 0
    ) -> None:
        super().__init__()
        for name, value in (("discount", discount), ("step_size", step_size), ("epsilon", epsilon)):
            check_range(f"TabularQ.{name}", value, 0, 1)
        if planning_steps < 0:
            raise UserError(f"planning_steps must not be negative: got {planning_steps}")
        self.discount = discount
        self.step_size = step_size
        self.epsilon = epsilon
        self.planning_steps = planning_steps

    def build(self, feature_shape: tuple[int, ...], num_actions: int) -> None:
        """Build the table, all zeros, for one-hot features (S,)."""
        if len(feature_shape) != 1:
            raise UserError(
                f"TabularQ needs one-hot features, as of modules.states.tabular.Tabular: got {feature_shape}"
            )
        self.register_buffer("table", torch.zeros(*feature_shape, num_actions))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logarithms of the epsilon-greedy probabilities (B, A) and the values of the best actions (B,)."""
        values = self.table[features.argmax(dim=-1)]
        best = values.amax(dim=-1, keepdim=True)
        greedy = (values == best).float()
        greedy = greedy / greedy.sum(dim=-1, keepdim=True)
        probabilities = (1 - self.epsilon) * greedy + self.epsilon / values.shape[-1]
        return probabilities.clamp(min=1e-12).log(), best[:, 0]

    def loss(self, batch: Batch, model: WorldModel) -> Loss:
        """Learn from rows (B, T) with states, then plan.

        Returns:
            No total, and the mean absolute `td_error` of the real transitions.

        Raises:
            UserError: the model is not Tabular.
        """
        if not isinstance(model, Tabular):
            raise UserError(f"TabularQ needs the model modules.states.tabular.Tabular: got {type(model).__name__}")
        assert batch.state is not None
        error = self.backup(batch)
        moved = batch.has_successor()[:, -1]
        if self.training and self.planning_steps and moved.any():
            self.backup(model.rehearse(batch.state[moved, -2], self.planning_steps))
        return Loss(None, {"td_error": error})

    @torch.no_grad()
    def backup(self, batch: Batch) -> Tensor:
        """Move the table towards r + gamma max_a Q(s', a) along the rows of all windows, in order (equation 6.8).

        Returns:
            The mean absolute error before the backups.
        """
        assert batch.state is not None
        has_successor = batch.has_successor()
        columns = (batch.state, batch.action, batch.reward, batch.continuation * self.discount)
        state, action, reward, discount = (column.unbind(1) for column in columns)
        errors = torch.zeros_like(batch.reward[:, 1:])
        for t in has_successor.any(dim=0).nonzero()[:, 0].tolist():
            where = state[t], action[t]
            target = reward[t] + discount[t] * self.table[state[t + 1]].amax(dim=-1)
            errors[:, t] = (target - self.table[where]) * has_successor[:, t]
            if self.training:
                self.table[where] += self.step_size * errors[:, t]
        return errors.abs().sum() / has_successor.sum().clamp(min=1)
