"""MuZero: a latent world model of rewards, values and policies, made for search.

It follows Schrittwieser et al. 2020 (Nature; arXiv 1911.08265). Each addition of EfficientZero (Ye et al. 2021) is an
argument.
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
from modules.layers.augmentation import Augmentation
from modules.layers.residual import AnyBatchNorm
from modules.optimization import Optimization
from modules.world_model import Loss, Spec, Step, WorldModel


@dataclass(frozen=True)
class LossWeights:
    """Weights of the losses. Those of reward and policy have weight 1.

    Args:
        value: weight of the value's loss.
        consistency: weight of EfficientZero's consistency loss between unrolled latents and the latents of the
            observations at the same steps; 0 turns it off, 2 in the paper.
        entropy: weight of a bonus for the policy's entropy.
        root: weight of the losses at a window's first row: "full" counts them once (MuZero), "share" 1/K, as the losses
            of each of the K unrolled steps (EfficientZero).
    """

    value: float = 0.25
    consistency: float = 0.0
    entropy: float = 0.0
    root: Literal["full", "share"] = "full"


class MuZero(WorldModel):
    """World model and policy of MuZero: representation h, dynamics g, and prediction f, which is `policy`.

    A state is one float32 vector: the latent, and with a value prefix also h and c of the LSTM, the sum of rewards and
    its number of steps. MuZero needs no agent around it: one loss trains h, g and f. It learns from rows whose extras
    `search_policy` and `root_value` a search wrote. The search is MuZero's or Gumbel MuZero's.

    Args:
        size: size of the networks: "vector" for vectors; "tiny" and "small" for pictures on a CPU; "efficientzero" and
            "muzero", the papers' networks, for pictures of 96 x 96; "debug" for either.
        support: number of integers in the distributions of value and reward, an odd number: 601 in the paper; 51
            represent values up to 642.
        norm: normalisation of the layers: "batch" or "layer". Batch normalisation uses running statistics in a search.
        state_norm: normalisation of latents: "minmax" scales every latent to [0, 1], as in MuZero; "none" keeps it, as
            in EfficientZero.
        targets: targets that the model learns from.
        weights: weights of the losses.
        target_every: number of updates between two copies of the networks into the target network, which bootstraps
            and reanalyses; 0 keeps no target network and uses the networks themselves.
        value_prefix: number of steps over which rewards are summed, so that the model predicts the sum: 5 in
            EfficientZero; 0 predicts single rewards.
        augmentation: random changes of the pictures in a loss; null changes nothing.
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
        augmentation: Augmentation | None = None,
        compile: bool = False,
        optimization: Optimization = Optimization(weight_decay=1e-4),
    ) -> None:
        super().__init__(optimization)
        check_range("MuZero.target_every", target_every, 0)
        check_range("MuZero.value_prefix", value_prefix, 0)
        self.size, self.support, self.norm, self.state_norm = size, support, norm, state_norm
        self.targets, self.weights = targets, weights
        self.target_every, self.value_prefix, self.augmentation = target_every, value_prefix, augmentation
        self.compile_networks = compile

    def build(self, spec: Spec) -> None:
        """Create the networks for stacks of frames, or for vectors."""
        vectors = len(spec.observation_shape) == 1
        size = SIZES["vector" if vectors and self.size == "debug" else self.size]
        self.networks = MuZeroNetworks(spec, size, self.norm, self.state_norm, self.support, self.value_prefix)
        self.state_shape, self.feature_shape = self.networks.state_shape, self.networks.latent_shape
        if self.weights.consistency:
            projection, hidden = size.projection
            # Batch normalisation, whatever `norm` is: without centring, similar pictures would agree from the start.
            self.projector = head(self.networks.latent_width, projection, projection, "batch")
            self.predictor = head(projection, hidden, projection, "batch")
            for last in (self.projector[-1], self.predictor[-1]):
                assert isinstance(last, nn.Linear)
                nn.Linear.reset_parameters(last)  # not 0 as in other heads: a zero vector has no direction
            self.projector.append(AnyBatchNorm(projection))
        if self.target_every:
            self.target = copy.deepcopy(self.networks).requires_grad_(False)
        if self.compile_networks:
            for network in (self.networks.representation, self.networks.transition, self.networks.policy):
                network.compile()

    @property
    def discount(self) -> float:
        """Discount factor of returns, in targets and in searches."""
        return self.targets.discount

    @property
    def policy(self) -> Prediction:  # type: ignore[override]
        """Prediction f, which acts by itself or is the prior of a search."""
        return self.networks.policy

    @property
    def target_networks(self) -> MuZeroNetworks:
        """The networks that bootstrap and reanalyse: the target network, or the networks themselves without one."""
        return self.target if self.target_every else self.networks

    def refit(self, batch: Batch, validation_windows: Batch | None = None) -> None:
        """Fit the standardisation of vectors to the batch. Only a model without updates is fitted."""
        assert batch.observation is not None
        if self.updates or batch.observation.ndim != 3:
            return
        scale, mean = torch.std_mean(batch.observation.flatten(0, 1), dim=0)
        for networks in {self.networks, self.target_networks}:
            networks.representation.mean.copy_(mean)
            networks.representation.scale.copy_(scale.clamp(min=1e-3))

    def initial(self, batch_size: int) -> Tensor:
        """Return states of zeros."""
        return torch.zeros(batch_size, *self.state_shape, device=self.device)

    def observe(self, state: Tensor, action: Tensor, observation: Tensor, is_first: Tensor) -> Tensor:
        """Apply h: return the states of observations, which do not depend on earlier states."""
        return self.networks.represent(observation)

    def encode(self, batch: Batch) -> Tensor:
        """Apply h: return the states (B, T, *state_shape) of all observations of a batch."""
        assert batch.observation is not None
        return self.networks.represent(batch.observation.flatten(0, 1)).unflatten(0, batch.shape)

    def step(self, state: Tensor, action: Tensor) -> Step:
        """Apply g: return the next states and the expected rewards."""
        return self.networks.step(state, action)

    def predicted_reward(self, reward: Tensor) -> Tensor:
        """Return rewards as the targets have them, clipped to [-1, 1] or raw."""
        return reward.clamp(-1, 1) if self.targets.clip_rewards else reward

    def features(self, state: Tensor) -> Tensor:
        """Return the latents (B, *feature_shape)."""
        return self.networks.features(state)

    def loss(self, batch: Batch) -> Loss:
        """Unroll K steps from the first row of every window (Schrittwieser et al. 2020, equation 1 and appendix G).

        Windows count by their importance weights. With prioritised replay the loss also returns a priority (B,): the
        distance of the root's value from its target.
        """
        self._check(batch)
        assert batch.observation is not None
        targets = self.compute_targets(batch)
        states, outcomes = [self.networks.represent(self.augmented(batch.observation[:, 0]))], []
        for k in range(self.targets.unroll):
            # Half the gradient at every step, so that the gradient of h does not grow with the number of steps.
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
        # Each loss is (B, K + 1). The root has weight 1, and the K unrolled steps are averaged.
        share = torch.full_like(targets.value, 1 / self.targets.unroll)
        if self.weights.root == "full":
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
        # The policy's loss, a cross-entropy, cannot fall below the entropy of its targets.
        floor = -(searched * searched.clamp(min=1e-9).log()).sum(dim=2)
        parts |= {"loss": loss.detach(), "root_value": value.mean(), "target_value": targets.value[:, 0].mean()}
        parts["search_entropy"] = (share * floor * targets.alive).sum(dim=1).mean()
        priority = None
        if "row" in batch.extras:
            priority = (value - targets.value[:, 0]).abs() * targets.value_known[:, 0]
        return Loss(loss, parts, priority=priority)

    @torch.no_grad()
    def compute_targets(self, batch: Batch) -> Targets:
        """Return the targets of a batch."""
        assert batch.observation is not None
        if self.targets.bootstrap == "root_value":
            values = batch.extras["root_value"]
        elif "target_value" in batch.extras:
            values = batch.extras["target_value"]
        else:
            ends = self.bootstrap_rows(batch)
            values = torch.zeros(batch.shape, device=self.device)
            values[ends] = self.bootstrap_values(batch.observation[ends])
        reward = self.predicted_reward(batch.reward)
        return make_targets(
            batch, reward, values, self.targets.unroll, self.n_step(batch), self.targets.discount, self.value_prefix
        )

    def n_step(self, batch: Batch) -> int | Tensor:
        """Return the number of rewards in a value target, or one number per window (B,) with off-policy correction."""
        if not self.targets.off_policy_correction:
            return self.targets.n_step
        late = (batch.extras["age"][:, 0] / self.targets.off_policy_correction).long()
        return (self.targets.n_step - late).clamp(min=1)

    def bootstrap_rows(self, batch: Batch) -> Tensor:
        """Return flags (B, T) bool: the row may be where a value target bootstraps."""
        n_step = self.n_step(batch)
        shortest = n_step if isinstance(n_step, int) else int(n_step.min())
        ends = torch.ones(batch.shape, dtype=torch.bool, device=self.device)
        ends[:, :shortest] = ~batch.has_successor()[:, :shortest]
        return ends

    @torch.no_grad()
    def bootstrap_values(self, observations: Tensor) -> Tensor:
        """Return the target network's values (N,) of observations (N, ...)."""
        networks = self.target_networks
        with evaluating(networks):
            _, values = networks.policy(networks.features(networks.represent(observations)))
        return values

    def consistency_losses(self, batch: Batch, unrolled: Tensor) -> Tensor:
        """Return 1 minus the cosine similarity of unrolled and observed latents, (B, K), from 0 to 2.

        No gradient passes through the latents of observations (Ye et al. 2021, section 4.1).
        """
        assert batch.observation is not None
        observed = self.augmented(batch.observation[:, 1 : self.targets.unroll + 1].flatten(0, 1))
        width = self.networks.latent_width
        with torch.no_grad():
            goal = self.projector(self.networks.represent(observed)[:, :width])
        guess = self.predictor(self.projector(unrolled[:, 1:, :width].flatten(0, 1)))
        return (1 - F.cosine_similarity(guess, goal, dim=1)).unflatten(0, (batch.shape[0], self.targets.unroll))

    def augmented(self, observation: Tensor) -> Tensor:
        """Return pictures (B, C, H, W) augmented, in training only."""
        if self.augmentation is None or not self.training or observation.ndim != 4:
            return observation
        return self.augmentation(observation)

    def _check(self, batch: Batch) -> None:
        needed = self.targets.unroll + self.targets.n_step + 1
        if batch.shape[1] < needed:
            raise UserError(
                f"MuZero needs windows of at least unroll + n_step + 1 = {needed} rows: data.sampling.sequence_length "
                f"is {batch.shape[1]}"
            )
        columns = ["search_policy", *(["root_value"] if self.targets.bootstrap == "root_value" else [])]
        if missing := [name for name in columns if name not in batch.extras]:
            raise UserError(
                f"MuZero learns from the results of searches: add {missing[0]} to data.storage.extras, and let Collect "
                "act by pipelines.acting.play.SearchPlay"
            )
        if self.targets.off_policy_correction and "age" not in batch.extras:
            raise UserError(
                "model.targets.off_policy_correction needs the age of rows, which prioritised replay provides: set "
                "data.sampling.prioritised, with alpha 0 for uniform sampling"
            )

    @torch.no_grad()
    def updated(self) -> None:
        """Count the update, and copy the networks into the target network every `target_every` updates."""
        super().updated()
        if self.target_every and self.updates % self.target_every == 0:
            for name in ("parameters", "buffers"):
                for target, online in zip(getattr(self.target, name)(), getattr(self.networks, name)(), strict=True):
                    target.copy_(online)


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """Return x unchanged, and multiply its gradient by `scale`."""
    return scale * x + (1 - scale) * x.detach()
