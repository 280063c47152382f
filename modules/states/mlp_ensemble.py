"""Dynamics of vectors: the probabilistic ensemble of PETS (Chua et al. 2018) with the elites of MBPO (Janner 2019)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from modules.batch import Batch
from modules.errors import UserError, check_range
from modules.layers.ensemble import EnsembleMLP
from modules.optimization import Optimization
from modules.world_model import Loss, Spec, Step, WorldModel

LOG_VARIANCE_BOUNDS = (-10.0, 0.5)
"""Initial values of the learned bounds, in standardised units (Chua et al. 2018, appendix A.1)."""

CONTINUATION_HIDDEN_SIZE = 64
CONTINUATION_LAYERS = 2


class Transitions(NamedTuple):
    """Transitions: rows of a batch with their successors."""

    state: Tensor
    """(..., D): the state."""
    action: Tensor
    """(..., A): weights of the actions."""
    outcome: Tensor
    """(..., D + 1): change of the state, and reward."""
    after: Tensor
    """(..., D): next state."""
    continuation: Tensor
    """(...,): 1 if the episode goes on, 0 at its end."""
    has_successor: Tensor
    """(...,) bool: the next row is the successor, so the outcome is valid."""

    def take(self, index: Tensor) -> Transitions:
        """Index every field by its leading dimension."""
        return Transitions(*(field[index] for field in self))


class MLPEnsemble(WorldModel):
    """Perceptrons that predict the change of a vector and the reward as Gaussians.

    Separate small perceptrons predict the continuation from the next vector: as one more output of the large ones it
    is hardly learned beside sharp Gaussians.

    The state is the vector; with `sampling` "dream" a last column holds the index of the dreaming member. Members
    differ by their initial weights and by their data: each member resamples every training batch with replacement. Only
    the elites dream. `refit` standardises inputs and outcomes and selects the elites. A number that has not varied
    in any `refit` so far is ignored as an input and predicted to stay constant.

    Args:
        num_members: number of networks in the ensemble.
        num_elites: number of members that dream: the best on validation rows.
        hidden_size: width of the hidden layers.
        num_layers: number of hidden layers.
        sampling: time at which dreams draw a member: every "step" (TS1 of Chua et al. 2018, section 5.1) or once per
            "dream" (TS-infinity).
        temperature: factor on the standard deviation of sampled steps; 0 takes the mean.
        optimization: optimizer, learning rate and schedule of the model.
    """

    capabilities = frozenset({"step", "reward", "decode", "gradient"})
    elites: Tensor
    fitted: Tensor
    input_mean: Tensor
    input_std: Tensor
    outcome_mean: Tensor
    outcome_std: Tensor

    def __init__(
        self,
        num_members: int = 7,
        num_elites: int = 5,
        hidden_size: int = 200,
        num_layers: int = 4,
        sampling: Literal["step", "dream"] = "step",
        temperature: float = 1.0,
        optimization: Optimization = Optimization(weight_decay=1e-5),
    ) -> None:
        super().__init__(optimization)
        if not 1 <= num_elites <= num_members:
            raise UserError(f"model.num_elites must be between 1 and num_members, {num_members}: got {num_elites}")
        if num_layers < 1:
            raise UserError(f"model.num_layers must be at least 1: got {num_layers}")
        check_range("MLPEnsemble.hidden_size", hidden_size, 1)
        self.num_members = num_members
        self.num_elites = num_elites
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.sampling = sampling
        check_range("MLPEnsemble.temperature", temperature, 0)
        self.temperature = temperature

    def build(self, spec: Spec) -> None:
        """Build the networks for vectors (D,)."""
        if len(spec.observation_shape) != 1:
            raise UserError(
                f"MLPEnsemble learns from vectors (D,): observations are {spec.observation_shape}; try modules.frames"
            )
        self.num_actions = spec.num_actions
        self.feature_shape = spec.observation_shape
        (self.size,) = spec.observation_shape
        self.state_shape = (self.size + (self.sampling == "dream"),)
        outcomes = self.size + 1
        self.network = EnsembleMLP(
            self.num_members,
            inputs=self.size + spec.num_actions,
            hidden=self.hidden_size,
            layers=self.num_layers,
            outputs=2 * outcomes,
        )
        self.continuation = EnsembleMLP(
            self.num_members, inputs=self.size, hidden=CONTINUATION_HIDDEN_SIZE, layers=CONTINUATION_LAYERS, outputs=1
        )
        low, high = LOG_VARIANCE_BOUNDS
        self.min_log_variance = nn.Parameter(torch.full((outcomes,), low))
        self.max_log_variance = nn.Parameter(torch.full((outcomes,), high))
        self.register_buffer("input_mean", torch.zeros(self.size))
        self.register_buffer("input_std", torch.ones(self.size))
        self.register_buffer("outcome_mean", torch.zeros(outcomes))
        self.register_buffer("outcome_std", torch.ones(outcomes))
        self.register_buffer("elites", torch.arange(self.num_elites))
        self.register_buffer("fitted", torch.tensor(False))

    def transitions(self, batch: Batch) -> Transitions:
        """Return the transitions (B * (T - 1), ...) between adjacent rows."""
        assert batch.observation is not None
        state, after = batch.observation[:, :-1], batch.observation[:, 1:]
        outcome = torch.cat([after - state, batch.reward[:, :-1, None]], dim=-1)
        action = F.one_hot(batch.action[:, :-1], self.num_actions).float()
        rows = (state, action, outcome, after, batch.continuation[:, :-1], batch.has_successor())
        return Transitions(*(tensor.flatten(0, 1) for tensor in rows))

    def every(self, rows: Transitions) -> Tensor:
        """Return the index (M, N) that gives every transition to every member."""
        return torch.arange(len(rows.state), device=rows.state.device).expand(self.num_members, -1)

    def standardised(self, vector: Tensor) -> Tensor:
        """Return vectors (..., D) in standardised units."""
        return (vector - self.input_mean) * inverse(self.input_std)

    def inputs(self, state: Tensor, action: Tensor) -> Tensor:
        """Return the networks' inputs, (..., D + A)."""
        return torch.cat([self.standardised(state), action], dim=-1)

    def gaussian(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and softly bounded log variance of standardised outcomes (..., D + 1)."""
        mean, log_variance = output.float().chunk(2, dim=-1)
        log_variance = self.max_log_variance - F.softplus(self.max_log_variance - log_variance)
        return mean, self.min_log_variance + F.softplus(log_variance - self.min_log_variance)

    def losses(self, rows: Transitions) -> dict[str, Tensor]:
        """Return every member's mean losses (M,) on its transitions (M, N).

        nll and mse are means over the standardised outcomes that vary. nrmse is the root of the mean squared error over
        the variance, for the change of the state only.
        """
        mean, log_variance = self.gaussian(self.network(self.inputs(rows.state, rows.action)))
        target = (rows.outcome - self.outcome_mean) * inverse(self.outcome_std)
        squared = (mean - target) ** 2
        nll = 0.5 * (squared * (-log_variance).exp() + log_variance + math.log(2 * math.pi))
        logit = self.continuation(self.standardised(rows.after)).float()[..., 0]
        continuation = F.binary_cross_entropy_with_logits(logit, rows.continuation, reduction="none")
        weight = rows.has_successor / rows.has_successor.sum(dim=1, keepdim=True).clamp(min=1)
        varies = (self.outcome_std > 0).float()
        varies_state = varies[:-1] / varies[:-1].sum().clamp(min=1)
        varies = varies / varies.sum().clamp(min=1)
        return {
            "nll": (weight * ((nll * varies).sum(dim=-1))).sum(dim=1),
            "continuation": (weight * continuation).sum(dim=1),
            "mse": (weight * ((squared * varies).sum(dim=-1))).sum(dim=1),
            "nrmse": (weight * ((squared[..., :-1] * varies_state).sum(dim=-1))).sum(dim=1).sqrt(),
            "reward": (weight * (squared[..., -1] * self.outcome_std[-1] ** 2)).sum(dim=1),
        }

    def loss(self, batch: Batch) -> Loss:
        """Return the loss of every member on its resampled transitions; the logged parts are means over members.

        Only nll, continuation and the term on the variance bounds are minimised; mse, nrmse and reward (squared error
        of raw rewards) are only logged. Outside training every member sees every transition.
        """
        if batch.shape[1] < 2:
            raise UserError("MLPEnsemble learns from windows of at least 2 rows: data.sampling.sequence_length is 1")
        rows = self.transitions(batch)
        index = self.every(rows)
        parts = self.losses(rows.take(torch.randint_like(index, index.shape[1]) if self.training else index))
        bounds = ((self.max_log_variance - self.min_log_variance) * (self.outcome_std > 0)).sum()
        # A sum over members, so that each learns independently of their number.
        total = (parts["nll"] + parts["continuation"]).sum() + 0.01 * bounds
        parts = {"loss": total, **parts}
        return Loss(total, {name: value.detach().mean() for name, value in parts.items()}, self.encode(batch))

    @torch.no_grad()
    def refit(self, batch: Batch, validation_windows: Batch | None = None) -> None:
        """Standardise by training rows, and select as elites the members with the least mse.

        Elites are judged on validation rows, or on the training rows without them. After the first `refit` predictions
        do not change: the first and last layers absorb the change of units. Otherwise a growing replay buffer would
        undo earlier learning.
        """
        rows = self.transitions(batch)
        if from_rank_zero(rows.has_successor.any()):
            rows = rows.take(rows.has_successor)
            vectors = torch.cat([rows.state, rows.after])
            largest = torch.cat([vectors.abs().amax(dim=0), rows.outcome[:, -1:].abs().amax(dim=0)])
            resolution = 1e-6 * largest
            self.restandardise(
                *standardise(vectors, resolution[:-1], self.input_std * self.fitted),
                *standardise(rows.outcome, resolution, self.outcome_std * self.fitted),
            )
        judged = self.transitions(batch if validation_windows is None else validation_windows)
        if from_rank_zero(judged.has_successor.any()):
            mse = self.losses(judged.take(self.every(judged)))["mse"]
            self.elites.copy_(from_rank_zero(mse.argsort()[: self.num_elites]))

    def restandardise(self, input_mean: Tensor, input_std: Tensor, outcome_mean: Tensor, outcome_std: Tensor) -> None:
        """Change the units of inputs and outcomes; after the first call predictions stay the same."""
        if self.fitted:
            scale, shift = affine(self.input_mean, self.input_std, input_mean, input_std)
            one = torch.ones(self.num_actions, device=scale.device)
            self.continuation.transform_inputs(scale, shift)
            self.network.transform_inputs(torch.cat([scale, one]), torch.cat([shift, 0 * one]))
            scale, shift = affine(outcome_mean, outcome_std, self.outcome_mean, self.outcome_std)
            log_shift = 2 * torch.where(scale > 0, scale, 1).log()
            self.network.transform_outputs(torch.cat([scale, torch.ones_like(scale)]), torch.cat([shift, log_shift]))
            self.min_log_variance.add_(log_shift)
            self.max_log_variance.add_(log_shift)
        self.input_mean.copy_(input_mean)
        self.input_std.copy_(input_std)
        self.outcome_mean.copy_(outcome_mean)
        self.outcome_std.copy_(outcome_std)
        self.fitted.fill_(True)

    def draw(self, number: int) -> Tensor:
        """Draw elites, (number,) int64."""
        return self.elites[torch.randint(self.num_elites, (number,), device=self.elites.device)]

    def join(self, vector: Tensor, state: Tensor) -> Tensor:
        """Return vectors (B, D) as states that keep the column of `state`."""
        return torch.cat([vector, state[:, self.size :]], dim=1)

    def encode(self, batch: Batch) -> Tensor:
        """Return the states of all rows; with `sampling` "dream" a window has one member."""
        assert batch.observation is not None
        column = self.initial(batch.shape[0])[:, None, self.size :]
        return torch.cat([batch.observation, column.expand(-1, batch.shape[1], -1)], dim=2)

    def initial(self, batch_size: int) -> Tensor:
        """Return zeros; with `sampling` "dream" also a drawn member."""
        zeros = torch.zeros(batch_size, self.size, device=self.device)
        return zeros if self.sampling == "step" else torch.cat([zeros, self.draw(batch_size)[:, None]], dim=1)

    def observe(self, state: Tensor, action: Tensor, observation: Tensor, is_first: Tensor) -> Tensor:
        """Return the state of the observed vector."""
        return self.join(observation, state)

    def step(self, state: Tensor, action: Tensor) -> Step:
        """Sample one step of an elite: draw the change of the vector, take the mean of the reward."""
        member = self.draw(len(state)) if self.sampling == "step" else state[:, -1].long()
        if not action.is_floating_point():
            action = F.one_hot(action, self.num_actions).float()
        order = member.argsort()
        counts = member.bincount(minlength=self.num_members).tolist()
        state, action = state[order], action[order]
        vector = self.features(state)
        mean, log_variance = self.gaussian(self.network.by_group(self.inputs(vector, action), counts))
        change = mean[:, :-1]
        if self.temperature:
            std = self.temperature * (0.5 * log_variance[:, :-1]).exp()
            change = change + std * torch.randn_like(std)
        after = vector + self.outcome_mean[:-1] + self.outcome_std[:-1] * change
        reward = self.outcome_mean[-1] + self.outcome_std[-1] * mean[:, -1]
        logit = self.continuation.by_group(self.standardised(after), counts).float()[:, 0]
        back = order.argsort()
        return Step(self.join(after, state)[back], reward[back], logit.sigmoid()[back])

    def features(self, state: Tensor) -> Tensor:
        """Return the vector."""
        return state[:, : self.size]

    def decode(self, state: Tensor) -> Tensor:
        """Return the vector, (B, D)."""
        return self.features(state)


def inverse(std: Tensor) -> Tensor:
    """Return 1 / std, or 0 where std is 0."""
    return torch.where(std > 0, 1 / std, 0)


def affine(mean: Tensor, std: Tensor, other_mean: Tensor, other_std: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scale and shift from the other standardised units to the units of `mean` and `std`."""
    return other_std * inverse(std), (other_mean - mean) * inverse(std)


def standardise(values: Tensor, resolution: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of (N, K), equal on every rank.

    Args:
        values: values (N, K).
        resolution: (K,) standard deviations below which the variation is rounding.
        previous: (K,) standard deviations to keep for values without variation; 0 without earlier ones.
    """
    std, mean = torch.std_mean(values, dim=0, correction=0)
    return from_rank_zero(mean), from_rank_zero(torch.where(std > resolution, std, previous))


def from_rank_zero(tensor: Tensor) -> Tensor:
    """Return rank 0's tensor, so that weights computed from it are equal on every rank."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast(tensor, 0)
    return tensor
