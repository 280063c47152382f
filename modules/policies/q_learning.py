"""Q-learning: DQN (Mnih et al. 2015) with later improvements, up to BBF (Schwarzer et al. 2023)."""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.batch import Batch
from modules.errors import UserError
from modules.layers.augmentation import Augmentation
from modules.layers.distributions import Atoms
from modules.layers.returns import n_step_parts, n_step_returns, reach_weights, weighted_mean
from modules.optimization import Optimization
from modules.policies.policy import Policy
from modules.policies.q_network import Network, QNetwork
from modules.policies.q_settings import Distribution, Epsilon, TargetNetwork, Targets
from modules.policies.self_prediction import SelfPrediction, SelfPredictor, prediction_losses
from modules.world_model import Loss, WorldModel


class QLearning(Policy):
    """Learns action values from real or dreamed rows, and acts epsilon-greedily. On an IdentityModel it is DQN.

    Args:
        network: layers between features and action values.
        targets: settings of the targets that action values learn.
        target_network: delayed copy of the network that bootstraps.
        epsilon: probability of a random action.
        distribution: distribution of returns that is learned for each action; null learns expected returns alone.
        augmentation: random changes of the pictures in a loss; null changes nothing.
        self_prediction: auxiliary loss by which a latent model predicts the encoder's outputs; null leaves it out.
        optimization: learning rate, schedule and weight decay of the policy; its `optimizer` must be the world model's.
        gradient_clip_val: largest norm of the policy's gradient; null does not clip it.
        clip_rewards: learn from rewards clipped to [-1, 1].
    """

    can_reset = True
    debug: ClassVar[dict[str, Any]] = {"network": {"width": 1, "hidden": 256}}

    def __init__(
        self,
        network: Network = Network(),
        targets: Targets = Targets(),
        target_network: TargetNetwork = TargetNetwork(),
        epsilon: Epsilon = Epsilon(),
        distribution: Distribution | None = None,
        augmentation: Augmentation | None = None,
        self_prediction: SelfPrediction | None = None,
        optimization: Optimization = Optimization(lr=3e-4),
        gradient_clip_val: float | None = 10.0,
        clip_rewards: bool = False,
    ) -> None:
        super().__init__(optimization, gradient_clip_val, clip_rewards)
        self.network, self.targets, self.target_network, self.epsilon = network, targets, target_network, epsilon
        self.augmentation, self.self_prediction = augmentation, self_prediction
        self.predictor: SelfPredictor | None = None
        self.atoms = None if distribution is None else Atoms(distribution.atoms, distribution.low, distribution.high)
        self.reset_at = 0
        """Number of updates at the last reset."""

    def build(self, feature_shape: tuple[int, ...], num_actions: int) -> None:
        """Create the online and the target network, and the predictor of latents."""
        if self.augmentation is not None and len(feature_shape) != 3:
            raise UserError("augmentation changes pictures: set it to null for vectors")
        self.shape, self.num_actions = feature_shape, num_actions
        self.online, self.predictor = self._fresh()
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def _fresh(self) -> tuple[QNetwork, SelfPredictor | None]:
        """Return networks with new weights, on the CPU."""
        atoms = None if self.atoms is None else len(self.atoms.returns)
        online = QNetwork(self.network, self.shape, self.num_actions, atoms)
        settings = self.self_prediction
        return online, None if settings is None else SelfPredictor(online, settings.blocks)

    # Acting.

    @property
    def discount(self) -> float:
        """Discount factor, the last one if it is annealed. Searches use it."""
        return self.targets.discount

    @property
    def exploration(self) -> float:
        """Present probability of a random action."""
        return self.epsilon.at(self.real_steps)

    def values(self, outputs: Tensor) -> Tensor:
        """Map a network's outputs, values (..., A) or logits (..., A, atoms), to action values (..., A)."""
        return outputs.float() if self.atoms is None else self.atoms.mean(outputs.float())

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logarithms of the epsilon-greedy probabilities (B, A), and the greedy values (B,)."""
        values = self.values((self.target if self.target_network.acts else self.online)(features))
        best, greedy = values.max(dim=1)
        epsilon, num_actions = self.exploration, values.shape[1]
        # A greedy policy gives every action a tiny probability, so that every logit is finite.
        random = max(epsilon, 1e-6) / num_actions
        logits = torch.full_like(values, math.log(random))
        logits.scatter_(1, greedy[:, None], math.log(1 - epsilon + random))
        return logits, best

    # Learning.

    def transitions(self, batch: Batch) -> Tensor:
        """Return the number () of transitions over which the loss is a mean."""
        return self._weights(batch).sum()

    def learned_rows(self, sequence_length: int) -> int:
        """Return the number of transitions that the policy learns from in a real window of so many rows."""
        return 1 if self.targets.rows == "first" else sequence_length - 1

    def _first_alone(self, batch: Batch) -> bool:
        """Return whether only the first row is learned from. Of a dream, each row is: all are states never seen."""
        return self.targets.rows == "first" and batch.observation is not None

    def _weights(self, batch: Batch) -> Tensor:
        weights = reach_weights(batch.continuation, batch.has_successor())
        return weights[:, :1] if self._first_alone(batch) else weights

    def loss(self, batch: Batch, model: WorldModel) -> Loss:
        """Return the sum of the losses of action values and of predicted latents.

        Windows are weighted by their importance, and dreamed rows by the probability that they are reached. Windows
        that were drawn by priority also get a new priority (B,): the loss of their action values.
        """
        n_step, discount = self.targets.at(self.updates - self.reset_at)
        self._check(batch)
        learn = self._first_row if self._first_alone(batch) else self._every_row
        latent, outputs, targets = learn(batch, model, n_step, discount)
        weights = self._weights(batch)
        chosen = _of_action(outputs, batch.action[:, : weights.shape[1]])
        if self.atoms is None:
            losses = F.smooth_l1_loss(chosen, targets, reduction="none")
        else:
            losses = -(targets * chosen.log_softmax(dim=2)).sum(dim=2)
        importance = batch.extras.get("weight")
        loss = weighted_mean(losses if importance is None else losses * importance[:, :1], weights)
        value = chosen if self.atoms is None else self.atoms.mean(chosen)
        parts = {
            "value": weighted_mean(value.detach(), weights),
            "epsilon": loss.new_tensor(self.exploration),
        }
        if self.self_prediction is not None:
            predicted = self._prediction_losses(batch, model, latent)
            if importance is not None:
                predicted = predicted * importance[:, 0]
            parts["self_prediction"] = weighted_mean(predicted, weights[:, 0]).detach()
            loss = loss + self.self_prediction.weight * weighted_mean(predicted, weights[:, 0])
        priority = None
        if "row" in batch.extras:
            priority = (losses.detach() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-6)
        return Loss(loss, {"loss": loss.detach(), **parts}, priority=priority)

    def _first_row(self, batch: Batch, model: WorldModel, n_step: int, discount: float) -> tuple[Tensor, ...]:
        """Return the latents of the windows' first rows, their outputs (B, 1, A, ...) and targets (B, 1, ...).

        Only the first row and the row that bootstraps pass the networks.
        """
        assert batch.state is not None
        parts = n_step_parts(self.rewards(batch), batch.continuation, batch.has_successor(), discount, n_step)
        sums, factors, ends = (part[:, :1] for part in parts)
        windows = torch.arange(len(ends), device=ends.device)
        latent = self.online.encode(self._seen(batch.state[:, 0], model))
        outputs = self.online.head(latent).float()[:, None]
        with torch.no_grad():
            later = self._seen(batch.state[windows, ends[:, 0]], model)
            judged = self.target(later).float()[:, None]
            choosing = self.online(later).float()[:, None] if self.targets.double else judged
            bootstrap = _of_action(judged, self.values(choosing).argmax(dim=2))
            targets = sums + factors * bootstrap if self.atoms is None else self._moved(bootstrap, sums, factors)
        return latent, outputs, targets

    def _every_row(self, batch: Batch, model: WorldModel, n_step: int, discount: float) -> tuple[Tensor, ...]:
        """Return the latents of the windows' first rows, and outputs (B, T - 1, A, ...) and targets of all rows."""
        assert batch.state is not None
        features = self._seen(batch.state.flatten(0, 1), model)
        latent = self.online.encode(features)
        outputs = self.online.head(latent).float().unflatten(0, batch.shape)
        rows = self.rewards(batch), batch.continuation, batch.has_successor()
        with torch.no_grad():
            judged = self.target(features).float().unflatten(0, batch.shape)
            choosing = outputs if self.targets.double else judged
            bootstrap = _of_action(judged, self.values(choosing).argmax(dim=2))
            if self.atoms is None:
                targets = n_step_returns(*rows, bootstrap, discount, n_step)
            else:
                sums, factors, ends = n_step_parts(*rows, discount, n_step)
                bootstrap = bootstrap.gather(1, ends[..., None].expand(*ends.shape, bootstrap.shape[2]))
                targets = self._moved(bootstrap, sums, factors)
        return latent.unflatten(0, batch.shape)[:, 0], outputs[:, :-1], targets

    def _moved(self, logits: Tensor, sums: Tensor, factors: Tensor) -> Tensor:
        """Return probabilities (B, R, atoms) of the targets sum + factor * return, from logits of the return."""
        assert self.atoms is not None
        returns = sums[..., None] + factors[..., None] * self.atoms.returns
        return self.atoms.project(logits.softmax(dim=2), returns)

    def _prediction_losses(self, batch: Batch, model: WorldModel, latent: Tensor) -> Tensor:
        """Return the loss (B,) of the latents that are predicted from the windows' first rows (Schwarzer et al. 2021).

        The target network encodes the observations that are predicted.
        """
        assert batch.state is not None
        assert self.self_prediction is not None
        assert self.predictor is not None
        steps = self.self_prediction.steps
        later = batch.state[:, 1 : steps + 1]
        with torch.no_grad():
            seen = self.target.project(self.target.encode(self._seen(later.flatten(0, 1), model)))
        predicted = self.predictor(self.online, latent, batch.action[:, :steps])
        return prediction_losses(predicted, seen.unflatten(0, later.shape[:2]), batch.has_successor()[:, :steps])

    @torch.no_grad()
    def _seen(self, states: Tensor, model: WorldModel) -> Tensor:
        """Return the features (N, *feature_shape) of states, augmented."""
        features = model.features(states)
        return features if self.augmentation is None else self.augmentation(features)

    def _check(self, batch: Batch) -> None:
        steps = 0 if self.self_prediction is None else self.self_prediction.steps
        needed = 1 + max(steps, self.targets.longest if self.targets.rows == "first" else 0)
        # A dream may be shorter: it bootstraps from its last row.
        if batch.observation is not None and batch.shape[1] < needed:
            raise UserError(
                f"targets of {self.targets.longest} steps and self_prediction of {steps} take {needed} rows a window: "
                f"data.sampling.sequence_length is {batch.shape[1]}"
            )

    @torch.no_grad()
    def updated(self) -> None:
        """Move the target network."""
        super().updated()
        if self.updates % self.target_network.every == 0:
            for target, online in zip(self.target.parameters(), self.online.parameters(), strict=True):
                target.lerp_(online, self.target_network.rate)

    # Resets.

    def _kept(self) -> list[torch.nn.Parameter]:
        """Return the parameters of the encoder and of the transition model, of which a reset keeps a share."""
        transition = [] if self.predictor is None else self.predictor.transition.parameters()
        return [*self.online.encoder.parameters(), *transition]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups; a reset replaces the weights of the `renewed` ones."""
        kept = self._kept()
        renewed = [p for p in self.parameters() if not any(p is other for other in kept)]
        return [
            *self.optimization.groups(kept),
            *({**group, "renewed": True} for group in self.optimization.groups(renewed)),
        ]

    @torch.no_grad()
    def reset(self, keep: float) -> None:
        """Draw new weights. Encoder and transition model mix them with the share `keep` of their old weights.

        This is shrink and perturb (Ash and Adams 2020) as in Schwarzer et al. 2023, section 4. Both networks get the
        same new weights. Annealing begins again.
        """
        online, predictor = self._fresh()
        for held, fresh in ((self.online, online), (self.target, online), (self.predictor, predictor)):
            if held is None or fresh is None:
                continue
            for (name, old), new in zip(held.named_parameters(), fresh.parameters(), strict=True):
                if name.startswith(("encoder.", "transition.")):
                    old.lerp_(new.to(old.device), 1 - keep)
                else:
                    old.copy_(new)
        self.reset_at = self.updates

    def get_extra_state(self) -> dict[str, int]:
        """Return the state that checkpoints store beside the weights."""
        return {**super().get_extra_state(), "reset_at": self.reset_at}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Restore the numbers that schedules depend on."""
        super().set_extra_state(state)
        self.reset_at = state["reset_at"]


def _of_action(outputs: Tensor, action: Tensor) -> Tensor:
    """Return the outputs (B, T, ...) of actions (B, T) among those of all actions (B, T, A, ...)."""
    index = action.view(*action.shape, *[1] * (outputs.ndim - 2))
    return outputs.gather(2, index.expand(*action.shape, 1, *outputs.shape[3:]))[:, :, 0]
