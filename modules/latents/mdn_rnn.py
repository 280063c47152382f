"""The MDN-RNN of World Models, which predicts the next latent of a VAE (Ha & Schmidhuber 2018, section 3)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.batch import Batch
from modules.errors import UserError, check_range
from modules.latents.vae import VAE
from modules.layers.mixture import draw, log_density, mixture
from modules.layers.outcomes import VectorOutcomes
from modules.layers.returns import weighted_mean
from modules.optimization import Optimization
from modules.world_model import Loss, Spec, Step, WorldModel


class Memory(nn.Module):
    """An LSTM over latents and actions, with heads on its output h for the next z, the reward and the continuation.

    Args:
        latent_size: number Z of numbers in z.
        num_actions: number A of actions.
        hidden_size: number H of hidden units.
        mixtures: number K of Gaussians per number of z.
        reward_loss: loss of the reward: "categorical" or "real".
    """

    def __init__(self, latent_size: int, num_actions: int, hidden_size: int, mixtures: int, reward_loss: Any) -> None:
        super().__init__()
        self.lstm = nn.LSTM(latent_size + num_actions, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, 3 * latent_size * mixtures)
        self.outcomes = VectorOutcomes(hidden_size, reward_loss)

    def forward(self, inputs: Tensor, opens: Tensor) -> Tensor:
        """Map (B, T, Z + A) to h (B, T, H) after each row.

        Args:
            inputs: (B, T, Z + A) z and action of every row.
            opens: (B, T) bool: the memory is reset before the row. The first row always resets it.
        """
        opens = opens.clone()
        opens[:, 0] = True
        if not opens[:, 1:].any():
            return self.lstm(inputs)[0]
        # Each chunk between two resets becomes a separate sequence, padded to the longest length.
        starts = opens.flatten().nonzero()[:, 0]
        lengths = starts.diff(append=starts.new_tensor([opens.numel()]))
        chunks = nn.utils.rnn.pad_sequence(list(inputs.flatten(0, 1).split(lengths.tolist())), batch_first=True)
        held = torch.arange(chunks.shape[1], device=inputs.device) < lengths[:, None]
        return self.lstm(chunks)[0][held].unflatten(0, opens.shape)

    def step(self, inputs: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, Z + A) and the LSTM's h and c (B, H) to the next h and c (B, H)."""
        return torch.lstm_cell(inputs, (h, c), *self.lstm.all_weights[0])


class MDNRNN(WorldModel):
    """Dreams in z: an LSTM predicts the next z as a mixture of Gaussians, the reward and the continuation.

    The state is z, h and c of the LSTM in one row of float32; policies see z and h. In training every update draws z
    anew from the VAE's posterior, and no gradient passes between the VAE and the LSTM. Actors see the mean of z.

    Args:
        vae: VAE that encodes and decodes frames. Its `optimization` sets only its learning rate and weight decay.
        hidden_size: hidden units of the LSTM; 256 in the paper's car racing, 512 in its Doom.
        mixtures: number of Gaussians per number of z.
        reward_loss: loss of the reward: "categorical", a softmax over the signs -1, 0, 1, or "real", squared error.
        outcome_weight: weight of the reward and continuation losses; the density loss, a mean over the numbers of z,
            has weight 1.
        vae_updates: number of first updates that train only the VAE; later updates train only the rest, as in the
            paper. null trains both in every update.
        temperature: temperature tau of sampled steps: above 1 dreams are less certain than the model; 0 takes the mode.
        optimization: optimizer and schedule of all parts, and learning rate of all parts except the VAE.
    """

    capabilities = frozenset({"step", "reward", "decode"})

    def __init__(
        self,
        vae: VAE,
        hidden_size: int = 256,
        mixtures: int = 5,
        reward_loss: Literal["categorical", "real"] = "categorical",
        outcome_weight: float = 1.0,
        vae_updates: int | None = None,
        temperature: float = 1.0,
        optimization: Optimization = Optimization(),
    ) -> None:
        super().__init__(optimization)
        if min(hidden_size, mixtures) < 1 or (vae_updates is not None and vae_updates < 0):
            raise UserError(
                "MDNRNN needs hidden_size and mixtures of at least 1 and vae_updates of at least 0 or null: "
                f"got {hidden_size}, {mixtures} and {vae_updates}"
            )
        check_range("MDNRNN.temperature", temperature, 0)
        self.vae = vae
        self.hidden_size = hidden_size
        self.mixtures = mixtures
        self.reward_loss = reward_loss
        self.outcome_weight = outcome_weight
        self.vae_updates = vae_updates
        self.temperature = temperature
        self.density: Tensor | None = None
        """Negative log density of the last loss."""

    def build(self, spec: Spec) -> None:
        """Build the networks for frames (C, H, W)."""
        self.vae.build_from(spec)
        self.latent_size, self.num_actions = self.vae.latent_size, spec.num_actions
        self.state_shape = (self.latent_size + 2 * self.hidden_size,)
        self.feature_shape = (self.latent_size + self.hidden_size,)
        self.memory = Memory(self.latent_size, self.num_actions, self.hidden_size, self.mixtures, self.reward_loss)

    def gradient_parts(self) -> list[nn.Module]:
        """Return the VAE, the LSTM with the head of its density, and the head of rewards and ends."""
        return [self.vae, nn.ModuleList([self.memory.lstm, self.memory.head]), self.memory.outcomes]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups of the VAE and of the memory."""
        return [*self.vae.parameter_groups(), *self.optimization.groups(self.memory.parameters())]

    def refit(self, batch: Batch, validation_windows: Batch | None = None) -> None:
        """Start untrained networks from the median picture and from the frequencies of outcomes."""
        self.vae.refit(batch)
        if self.updates == 0:
            self.memory.outcomes.start(batch)

    def learns(self) -> tuple[bool, bool]:
        """Return whether the VAE and the memory learn in this update; both are True outside training."""
        if self.vae_updates is None or not self.training:
            return True, True
        return self.updates < self.vae_updates, self.updates >= self.vae_updates

    def loss(self, batch: Batch) -> Loss:
        """Return the summed losses of the parts that learn in this update."""
        if batch.shape[1] < 2:
            raise UserError("MDNRNN learns from windows of at least 2 rows: data.sampling.sequence_length is 1")
        vae, memory = self.learns()
        losses: list[Tensor] = []
        parts: dict[str, Tensor] = {}
        self.density = None
        if vae:
            of_vae = self.vae.loss(batch)
            assert of_vae.total is not None
            losses.append(of_vae.total)
            parts |= {f"vae_{name}": value for name, value in of_vae.logs.items()}
        if memory:
            loss, logged = self.memory_loss(batch)
            losses.append(loss)
            parts |= logged
        total = torch.stack(losses).sum()
        return Loss(total, {"loss": total.detach(), **parts})

    def memory_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of predicting the successor of each row from the earlier rows of its window.

        The last frame of a terminated episode is no target: no action follows it, and emulators do not draw it.
        """
        assert batch.observation is not None
        with torch.no_grad():
            frames = self.vae.newest(batch.observation.flatten(0, 1))
            mean, log_std = (part.unflatten(0, batch.shape) for part in self.vae.infer(frames))
            z = mean + log_std.exp() * torch.randn_like(mean)
        h = self.memory(self.inputs(z[:, :-1], batch.action[:, :-1]), batch.is_first[:, :-1])
        has_successor = batch.has_successor().float()
        density = log_density(mixture(self.memory.head(h), self.latent_size), z[:, 1:]).mean(dim=2)
        nll = -weighted_mean(density, has_successor * batch.continuation[:, :-1])
        outcomes = self.memory.outcomes
        reward, continuation = outcomes(h.flatten(0, 1))
        weights = (has_successor * batch.weight[:, :-1]).flatten()
        reward_loss = weighted_mean(outcomes.reward_losses(reward, batch.reward[:, :-1].flatten()), weights)
        goes_on = batch.continuation[:, :-1].flatten()
        continuation_loss = weighted_mean(outcomes.continuation_losses(continuation, goes_on), weights)
        loss = nll + self.outcome_weight * (reward_loss + continuation_loss)
        parts = {"nll": nll, "reward": reward_loss, "continuation": continuation_loss}
        self.density = nll.detach()
        return loss, {name: part.detach() for name, part in parts.items()}

    def nonfinite_reason(self) -> str:
        """Return the reason if the mixture density collapsed, or ""."""
        if self.density is None or self.density.isfinite():
            return ""
        return f"the mixture density of the MDN-RNN collapsed (nll {self.density.item()})"

    def inputs(self, z: Tensor, action: Tensor) -> Tensor:
        """Return the LSTM's inputs, (..., Z + A): z and the weights of the action."""
        if not action.is_floating_point():
            action = F.one_hot(action, self.num_actions).float()
        return torch.cat([z, action], dim=-1)

    def split(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return z, h and c of states (B, Z + 2 H)."""
        z, h, c = state.split([self.latent_size, self.hidden_size, self.hidden_size], dim=1)
        return z, h, c

    def remember(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return h and c (B, H) after an action in a state."""
        z, h, c = self.split(state)
        return self.memory.step(self.inputs(z, action), h, c)

    def encode(self, batch: Batch) -> Tensor:
        """Return the states of all rows; the memory is zero at the start of a window."""
        z = self.vae.encode(batch)
        zeros = z.new_zeros(batch.shape[0], 2 * self.hidden_size)
        states = [torch.cat([z[:, 0], zeros], dim=1)]
        for t in range(1, batch.shape[1]):
            memory = torch.cat(self.remember(states[-1], batch.action[:, t - 1]), dim=1)
            states.append(torch.cat([z[:, t], memory.masked_fill(batch.is_first[:, t, None], 0)], dim=1))
        return torch.stack(states, dim=1)

    def initial(self, batch_size: int) -> Tensor:
        """Return zeros."""
        return torch.zeros(batch_size, *self.state_shape, device=self.device)

    def observe(self, state: Tensor, action: Tensor, observation: Tensor, is_first: Tensor) -> Tensor:
        """Return the mean of z with the updated memory."""
        z = self.vae.observe(state, action, observation, is_first)
        memory = torch.cat(self.remember(state, action), dim=1)
        return torch.cat([z, memory.masked_fill(is_first[:, None], 0)], dim=1)

    def step(self, state: Tensor, action: Tensor) -> Step:
        """Draw the next z at the temperature; a categorical reward is the expected sign."""
        h, c = self.remember(state, action)
        z = draw(mixture(self.memory.head(h), self.latent_size), self.temperature)
        reward, continuation = self.memory.outcomes(h)
        expected = self.memory.outcomes.expected_reward(reward)
        return Step(torch.cat([z, h.float(), c.float()], dim=1), expected, continuation.sigmoid())

    def predicted_reward(self, reward: Tensor) -> Tensor:
        """Return the signs of rewards, or the rewards if the loss is "real"."""
        return self.memory.outcomes.target(reward)

    def features(self, state: Tensor) -> Tensor:
        """Return z and h, (B, Z + H)."""
        return state[:, : self.latent_size + self.hidden_size]

    def decode(self, state: Tensor) -> Tensor:
        """Return the frame in [0, 1], (B, C, H, W)."""
        return self.vae.decode(state[:, : self.latent_size])

    def updated(self) -> None:
        """Count the update, for the VAE only while it learns."""
        if self.vae_updates is None or self.updates < self.vae_updates:
            self.vae.updated()
        super().updated()
