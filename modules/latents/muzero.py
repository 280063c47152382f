"""A model of what matters alone: rewards, values and policies in a latent space that search plans in (MuZero).

Schrittwieser et al. 2020 (Nature; arXiv 1911.08265), with the additions of EfficientZero (Ye et al. 2021), each on a
switch of its own.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.batch import Batch
from modules.errors import UserError, check_range
from modules.imagination import evaluating
from modules.latents.muzero_networks import SIZES, MuZeroNetworks, Prediction, head
from modules.latents.muzero_targets import TargetRule, Targets, make_targets
from modules.layers.augmentation import brighten, shift
from modules.layers.residual import AnyBatchNorm
from modules.optimization import Optimization
from modules.world_model import Loss, Spec, Step, WorldModel


@dataclass(frozen=True)
class LossWeights:
    """What the losses count for beside those of reward and policy.

    Args:
        value: weight of the value's loss.
        consistency: weight of EfficientZero's loss that unrolled latents agree with those of what was observed then; 0
            turns it off, 2 in the paper.
        entropy: weight of a bonus for the policy's entropy.
    """

    value: float = 0.25
    consistency: float = 0.0
    entropy: float = 0.0


class MuZero(WorldModel):
    """h represents an observation, g steps, f predicts policy and value; `policy` is f.

    Its state is one row of float32: the latent, and for a value prefix h and c of the LSTM, the sum so far and its
    steps beside it. It is trained alone, from rows that a search left its policy and value beside (`search_policy`,
    `root_value`): whatever the search improves, MuZero's policy or Gumbel MuZero's, is what f learns.

    Args:
        size: size of the networks: "debug", "vector", or for pictures "tiny" and "small" (CPU), "efficientzero" and
            "muzero" (the papers', for 96 x 96).
        support: integers of the distributions of value and reward, odd: 601 in the paper, 51 reach 642.
        norm: "batch" or "layer". Batch normalisation searches by running statistics.
        state_norm: "minmax" scales every latent to [0, 1], as MuZero does; EfficientZero does without ("none").
        targets: targets that the model learns from.
        weights: weights of the losses.
        target_every: updates between two copies of the networks into the target network, which bootstraps and
            reanalyses; 0 keeps none, the networks themselves do both.
        value_prefix: steps over which rewards are summed and predicted as a sum, 5 in EfficientZero; 0 predicts each.
        augment: shift pictures by up to 4 pixels and change their brightness while training.
        compile: compile the networks with torch.compile.
        optimization: optimizer, learning rate and schedule of the model.
    """

    capabilities = frozenset({"step", "reward"})
    capturable = True
    debug: ClassVar[dict[str, Any]] = {"size": "debug"}

    def __init__(
        self,
        size: Literal["vector", "debug", "tiny", "small", "efficientzero", "muzero"] = "small",
        support: int = 51,
        norm: Literal["batch", "layer"] = "layer",
        state_norm: Literal["minmax", "none"] = "minmax",
        targets: TargetRule = TargetRule(),
        weights: LossWeights = LossWeights(),
        target_every: int = 200,
        value_prefix: int = 0,
        augment: bool = False,
        compile: bool = False,
        optimization: Optimization = Optimization(weight_decay=1e-4),
    ) -> None:
        super().__init__(optimization)
        check_range("MuZero.target_every", target_every, 0)
        check_range("MuZero.value_prefix", value_prefix, 0)
        self.size, self.support, self.norm, self.state_norm = size, support, norm, state_norm
        self.targets, self.weights = targets, weights
        self.target_every, self.value_prefix, self.augment = target_every, value_prefix, augment
        self.compile_networks = compile

    def build(self, spec: Spec) -> None:
        """Make the networks for stacks of frames, or for vectors."""
        vectors = len(spec.observation_shape) == 1
        size = SIZES["vector" if vectors and self.size == "debug" else self.size]
        self.networks = MuZeroNetworks(spec, size, self.norm, self.state_norm, self.support, self.value_prefix)
        self.state_shape, self.feature_shape = self.networks.state_shape, self.networks.latent_shape
        if self.weights.consistency:
            projection, hidden = size.projection
            # Centred over the batch, whatever the norm: pictures that hardly differ would agree from the start.
            self.projector = head(self.networks.latent_width, projection, projection, "batch")
            self.predictor = head(projection, hidden, projection, "batch")
            for last in (self.projector[-1], self.predictor[-1]):
                assert isinstance(last, nn.Linear)
                nn.Linear.reset_parameters(last)  # not to 0, as other heads: 0 has no direction
            self.projector.append(AnyBatchNorm(projection))
        if self.target_every:
            self.target = copy.deepcopy(self.networks).requires_grad_(False)
        if self.compile_networks:
            for network in (self.networks.representation, self.networks.transition, self.networks.policy):
                network.compile()

    @property
    def discount(self) -> float:
        """Of returns, a search's as well."""
        return self.targets.discount

    @property
    def policy(self) -> Prediction:  # type: ignore[override]
        """f: what acts, by itself or as the prior of a search."""
        return self.networks.policy

    @property
    def target_networks(self) -> MuZeroNetworks:
        """The networks that bootstrap and reanalyse: the target network, if there is one."""
        return self.target if self.target_every else self.networks

    def refit(self, batch: Batch, validation_windows: Batch | None = None) -> None:
        """Standardise vectors by what a fresh model is shown; a trained one would see another world."""
        assert batch.observation is not None
        if self.updates or batch.observation.ndim != 3:
            return
        scale, mean = torch.std_mean(batch.observation.flatten(0, 1), dim=0)
        for networks in {self.networks, self.target_networks}:
            networks.representation.mean.copy_(mean)
            networks.representation.scale.copy_(scale.clamp(min=1e-3))

    def initial(self, batch_size: int) -> Tensor:
        """Return zeros."""
        return torch.zeros(batch_size, *self.state_shape, device=self.device)

    def observe(self, state: Tensor, action: Tensor, observation: Tensor, is_first: Tensor) -> Tensor:
        """h: return the state of an observation; nothing before it counts."""
        return self.networks.represent(observation)

    def encode(self, batch: Batch) -> Tensor:
        """Return the states of all observations at once."""
        assert batch.observation is not None
        return self.networks.represent(batch.observation.flatten(0, 1)).unflatten(0, batch.shape)

    def step(self, state: Tensor, action: Tensor) -> Step:
        """g."""
        return self.networks.step(state, action)

    def features(self, state: Tensor) -> Tensor:
        """Return the latents (B, *feature_shape)."""
        return self.networks.features(state)

    def loss(self, batch: Batch) -> Loss:
        """Unroll K steps from every window's first row.

        Windows that were drawn with an importance weight also have a priority: how far the root's value is from its
        target.
        """
        self._check(batch)
        assert batch.observation is not None
        targets = self.compute_targets(batch)
        states, outcomes = [self.networks.represent(self.augmented(batch.observation[:, 0]))], []
        for k in range(self.targets.unroll):
            # Half the gradient at every step: what reaches h stays as large however far it was unrolled.
            state, outcome, _ = self.networks.advance(scale_gradient(states[-1], 0.5), batch.action[:, k])
            states.append(state)
            outcomes.append(outcome)
        unrolled = torch.stack(states, dim=1)
        logits, values = (
            output.float().unflatten(0, unrolled.shape[:2])
            for output in self.policy.heads(self.features(unrolled.flatten(0, 1)))
        )
        log_policy = logits.log_softmax(dim=2)
        searched = batch.extras["search_policy"][:, : self.targets.unroll + 1]
        support = self.policy.support
        # Each is (B, K + 1); what unrolled steps teach is their mean.
        share = torch.full_like(targets.value, 1 / self.targets.unroll)
        share[:, 0] = 1
        reward_losses = support.losses(torch.stack(outcomes, dim=1), targets.reward) * targets.reward_known
        losses = {
            "value": support.losses(values, targets.value) * targets.value_known,
            "reward": F.pad(reward_losses, (1, 0)),
            "policy": -(searched * log_policy).sum(dim=2) * targets.alive,
            "entropy": -(log_policy.exp() * log_policy).sum(dim=2) * targets.alive,
        }
        if self.weights.consistency:
            losses["consistency"] = F.pad(self.consistency_losses(batch, unrolled) * targets.alive[:, 1:], (1, 0))
        weights = {
            "value": self.weights.value, "reward": 1.0, "policy": 1.0,
            "entropy": -self.weights.entropy, "consistency": self.weights.consistency,
        }  # fmt: skip
        per_window = {name: (share * each).sum(dim=1) for name, each in losses.items()}
        totals = torch.stack([weights[name] * each for name, each in per_window.items()]).sum(dim=0)
        importance = batch.extras.get("weight")
        loss = (totals if importance is None else totals * importance[:, 0]).mean()
        parts = {name: each.mean().detach() for name, each in per_window.items()}
        value = support.decode(values[:, 0].detach())
        # A policy cannot fall below the entropy of what it learns from.
        floor = -(searched * searched.clamp(min=1e-9).log()).sum(dim=2)
        parts |= {"loss": loss.detach(), "root_value": value.mean(), "target_value": targets.value[:, 0].mean()}
        parts["search_entropy"] = (share * floor * targets.alive).sum(dim=1).mean()
        priority = None
        if importance is not None:
            priority = (value - targets.value[:, 0]).abs() * targets.value_known[:, 0]
        return Loss(loss, parts, priority=priority)

    @torch.no_grad()
    def compute_targets(self, batch: Batch) -> Targets:
        """Make the targets of a batch."""
        n_step: int | Tensor = self.targets.n_step
        if self.targets.off_policy_correction:
            late = (batch.extras["age"][:, 0] / self.targets.off_policy_correction).long()
            n_step = (self.targets.n_step - late).clamp(min=1)
        if self.targets.bootstrap == "root_value":
            values = batch.extras["root_value"]
        else:
            values = self._bootstraps(batch, n_step if isinstance(n_step, int) else int(n_step.min()))
        reward = batch.reward.clamp(-1, 1) if self.targets.clip_rewards else batch.reward
        return make_targets(
            batch, reward, values, self.targets.unroll, n_step, self.targets.discount, self.value_prefix
        )

    def _bootstraps(self, batch: Batch, shortest: int) -> Tensor:
        """Return the target network's values (B, T) of the rows that a return may end in, 0 elsewhere."""
        assert batch.observation is not None
        ends = torch.ones(batch.shape, dtype=torch.bool, device=self.device)
        ends[:, :shortest] = ~batch.has_successor()[:, :shortest]
        values = torch.zeros(batch.shape, device=self.device)
        with evaluating(self.target_networks):
            states = self.target_networks.represent(batch.observation[ends])
            _, values[ends] = self.target_networks.policy(self.target_networks.features(states))
        return values

    def consistency_losses(self, batch: Batch, unrolled: Tensor) -> Tensor:
        """Return how little each unrolled latent agrees with that of the observation made then, (B, K), from 0 to 2.

        Negative cosine similarity, plus 1; no gradient reaches what was observed (Ye et al. 2021, section 4.1).
        """
        assert batch.observation is not None
        observed = self.augmented(batch.observation[:, 1 : self.targets.unroll + 1].flatten(0, 1))
        width = self.networks.latent_width
        with torch.no_grad():
            goal = self.projector(self.networks.represent(observed)[:, :width])
        guess = self.predictor(self.projector(unrolled[:, 1:, :width].flatten(0, 1)))
        return (1 - F.cosine_similarity(guess, goal, dim=1)).unflatten(0, (batch.shape[0], self.targets.unroll))

    def augmented(self, observation: Tensor) -> Tensor:
        """Shift and brighten pictures (B, C, H, W) while training."""
        if not (self.augment and self.training and observation.ndim == 4):
            return observation
        return brighten(shift(observation).float() / 255)

    def _check(self, batch: Batch) -> None:
        needed = self.targets.unroll + self.targets.n_step + 1
        if batch.shape[1] < needed:
            raise UserError(
                f"MuZero learns from windows of unroll + n_step + 1 = {needed} rows: data.sampling.sequence_length is "
                f"{batch.shape[1]}"
            )
        columns = ["search_policy", *(["root_value"] if self.targets.bootstrap == "root_value" else [])]
        if missing := [name for name in columns if name not in batch.extras]:
            raise UserError(
                f"MuZero learns from what a search found: data.storage.extras must name {missing[0]}, and Collect "
                "needs search"
            )
        if self.targets.off_policy_correction and "age" not in batch.extras:
            raise UserError(
                "model.targets.off_policy_correction needs the age of rows: set data.sampling.prioritised, with "
                "alpha 0 if need be"
            )

    @torch.no_grad()
    def updated(self) -> None:
        """Count, and copy the networks into the target network where it is time."""
        super().updated()
        if self.target_every and self.updates % self.target_every == 0:
            for name in ("parameters", "buffers"):
                for target, online in zip(getattr(self.target, name)(), getattr(self.networks, name)(), strict=True):
                    target.copy_(online)


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """Return x as it is; its gradient is scaled."""
    return scale * x + (1 - scale) * x.detach()
