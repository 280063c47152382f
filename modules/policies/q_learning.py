"""Q-learning: DQN (Mnih et al. 2015) with what made it sound since."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.batch import Batch
from modules.errors import UserError, check_range
from modules.layers.networks import body
from modules.layers.returns import n_step_returns, reach_weights, weighted_mean
from modules.policies.policy import Policy
from modules.world_model import Loss, WorldModel


class QNetwork(nn.Module):
    """Action values Q(s, a); dueling ones are a value and advantages of mean 0 (Wang et al. 2016, equation 9)."""

    def __init__(self, torso: nn.Module, width: int, num_actions: int, dueling: bool) -> None:
        super().__init__()
        self.torso = torso
        self.advantage = nn.Linear(width, num_actions)
        self.value = nn.Linear(width, 1) if dueling else None

    def forward(self, features: Tensor) -> Tensor:
        """(B, *feature_shape) to (B, A)."""
        x = self.torso(features)
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 cannot tell a value of 100 from one of 100.4
            advantage = self.advantage(x.float())
            if self.value is None:
                return advantage
            return self.value(x.float()) + advantage - advantage.mean(dim=1, keepdim=True)


class QLearning(Policy):
    """Acts epsilon-greedily and learns action values from whatever rows it is given. On an IdentityModel it is DQN.

    Args:
        hidden: widths of the fully connected layers.
        channels: channels of the three convolutions that see pictures.
        activation: "relu", "silu" or "tanh".
        layer_norm: use layer normalisation in the fully connected layers; steadies many updates per real step.
        double: choose the next action by the online network (van Hasselt et al. 2016).
        dueling: a value and advantages (Wang et al. 2016).
        n_step: rewards that a target sums, at most as many as a window has.
        discount: gamma.
        target_rate: fraction by which the target network moves to the online one after each update; 1 copies it.
        target_every: updates between two such moves.
        act_by: the network that chooses actions. The target network, an average over many updates, acts more steadily
            (Schwarzer et al. 2023, section 4).
        epsilon_start: probability of a random action at first.
        epsilon_end: probability of a random action at last.
        epsilon_updates: policy updates over which it falls linearly.
        lr: learning rate of AdamW.
        gradient_clip_val: largest norm of the policy's gradient.
        clip_rewards: learn from rewards clipped to [-1, 1].
    """

    def __init__(
        self,
        hidden: Sequence[int] = (128, 128),
        channels: Sequence[int] = (32, 64, 64),
        activation: Literal["relu", "silu", "tanh"] = "relu",
        layer_norm: bool = False,
        double: bool = True,
        dueling: bool = True,
        n_step: int = 1,
        discount: float = 0.99,
        target_rate: float = 0.005,
        target_every: int = 1,
        act_by: Literal["online", "target"] = "online",
        epsilon_start: float = 1.0,
        epsilon_end: float = 0.05,
        epsilon_updates: int = 10_000,
        lr: float = 3e-4,
        gradient_clip_val: float | None = 10.0,
        clip_rewards: bool = False,
    ) -> None:
        super().__init__(lr, gradient_clip_val, clip_rewards)
        shares = {
            "discount": discount,
            "target_rate": target_rate,
            "epsilon_start": epsilon_start,
            "epsilon_end": epsilon_end,
        }
        for name, value in shares.items():
            check_range(f"QLearning.{name}", value, 0, 1)
        if min(n_step, target_every) < 1 or epsilon_updates < 0:
            raise UserError(
                "QLearning needs n_step and target_every of at least 1 and epsilon_updates of at least 0: "
                f"got {n_step}, {target_every} and {epsilon_updates}"
            )
        self.hidden, self.channels, self.activation, self.layer_norm = hidden, channels, activation, layer_norm
        self.double_q, self.dueling, self.n_step, self.discount = double, dueling, n_step, discount
        self.target_rate, self.target_every, self.act_by = target_rate, target_every, act_by
        self.epsilon_start, self.epsilon_end, self.epsilon_updates = epsilon_start, epsilon_end, epsilon_updates

    def build(self, feature_shape: tuple[int, ...], num_actions: int) -> None:
        """Make the online and the target network."""
        torso, width = body(feature_shape, self.hidden, self.channels, self.activation, self.layer_norm)
        self.online = QNetwork(torso, width, num_actions, self.dueling)
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    @property
    def exploration(self) -> float:
        """The probability of a random action, by now."""
        progress = min(1.0, self.updates / self.epsilon_updates) if self.epsilon_updates else 1.0
        return self.epsilon_start + progress * (self.epsilon_end - self.epsilon_start)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logarithms of the epsilon-greedy probabilities (B, A), and the greedy values (B,)."""
        values = (self.target if self.act_by == "target" else self.online)(features).float()
        best, greedy = values.max(dim=1)
        epsilon, num_actions = self.exploration, values.shape[1]
        # A greedy policy stays a little open, so that every logit is finite.
        random = max(epsilon, 1e-6) / num_actions
        logits = torch.full_like(values, math.log(random))
        logits.scatter_(1, greedy[:, None], math.log(1 - epsilon + random))
        return logits, best

    def loss(self, batch: Batch, model: WorldModel) -> Loss:
        """Return the Huber loss of every row's action value; rows count as likely as they are reached."""
        features = self.features(batch, model)
        has_successor = batch.has_successor()
        online = self.online(features).float().unflatten(0, batch.shape)
        with torch.no_grad():
            target = self.target(features).float().unflatten(0, batch.shape)
            greedy = (online if self.double_q else target).argmax(dim=2, keepdim=True)
            values = target.gather(2, greedy)[..., 0]
            targets = n_step_returns(
                self.rewards(batch), batch.continuation, has_successor, values, self.discount, self.n_step
            )
            weights = reach_weights(batch.continuation, has_successor)
        chosen = online[:, :-1].gather(2, batch.action[:, :-1, None])[..., 0]
        loss = weighted_mean(F.smooth_l1_loss(chosen, targets, reduction="none"), weights)
        parts = {
            "loss": loss.detach(),
            "value": weighted_mean(chosen.detach(), weights),
            "epsilon": loss.new_tensor(self.exploration),
        }
        return Loss(loss, parts)

    @torch.no_grad()
    def updated(self) -> None:
        """Move the target network."""
        super().updated()
        if self.updates % self.target_every == 0:
            for target, online in zip(self.target.parameters(), self.online.parameters(), strict=True):
                target.lerp_(online, self.target_rate)
