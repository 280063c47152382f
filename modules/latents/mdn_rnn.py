"""What comes next in a VAE's latent space: the MDN-RNN of World Models (Ha & Schmidhuber 2018, section 3)."""

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
    """An LSTM over latents and actions, and what is read off its output h: the next z, the reward, whether it goes on.

    Args:
        latent_size: Z.
        num_actions: A.
        hidden_size: H.
        mixtures: K Gaussians for each number of z.
        reward_loss: "categorical" or "real".
    """

    def __init__(self, latent_size: int, num_actions: int, hidden_size: int, mixtures: int, reward_loss: Any) -> None:
        super().__init__()
        self.lstm = nn.LSTM(latent_size + num_actions, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, 3 * latent_size * mixtures)
        self.outcomes = VectorOutcomes(hidden_size, reward_loss)

    def forward(self, inputs: Tensor, opens: Tensor) -> Tensor:
        """Map (B, T, Z + A) to h (B, T, H) after each row.

        Args:
            inputs: z and the action of every row.
            opens: (B, T) bool: nothing before the row is remembered. The first row counts as one.
        """
        opens = opens.clone()
        opens[:, 0] = True
        if not opens[:, 1:].any():
            return self.lstm(inputs)[0]
        # Each piece between two openings becomes a sequence of its own, padded to the length of the longest.
        starts = opens.flatten().nonzero()[:, 0]
        lengths = starts.diff(append=starts.new_tensor([opens.numel()]))
        chunks = nn.utils.rnn.pad_sequence(list(inputs.flatten(0, 1).split(lengths.tolist())), batch_first=True)
        held = torch.arange(chunks.shape[1], device=inputs.device) < lengths[:, None]
        return self.lstm(chunks)[0][held].unflatten(0, opens.shape)

    def step(self, inputs: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, Z + A) and the LSTM's h and c (B, H) to those after it."""
        return torch.lstm_cell(inputs, (h, c), *self.lstm.all_weights[0])


class MDNRNN(WorldModel):
    """Dreams in z: an LSTM predicts the next z as a mixture of Gaussians, the reward, and whether the episode goes on.

    Its state is z, h and c of the LSTM in one row of float32; policies see z and h. While it learns, z is drawn anew
    from the VAE's posterior every time, and no gradient passes from one part to the other. Who acts sees the mean.

    Args:
        vae: encodes and paints frames. Its `optimization` says its learning rate and weight decay alone.
        hidden_size: width of the LSTM; 256 in the paper's car racing, 512 in its Doom.
        mixtures: Gaussians for each number of z.
        reward_loss: "categorical", a softmax over the signs -1, 0, 1, or "real", squared error.
        outcome_weight: weight of reward and continuation, beside a density that is the mean over the numbers of
            z.
        vae_updates: updates in which the VAE learns alone, before it stands still and the rest learns, as in the paper;
            null lets both learn side by side.
        temperature: tau of sampled steps: above 1 dreams are less certain than the model is; 0 takes the mode.
        optimization: optimizer and schedule of all, and the learning rate of all but the VAE.
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
        """The negative logarithm of the last loss's density."""

    def build(self, spec: Spec) -> None:
        """Make the networks for frames (C, H, W)."""
        self.vae.build_from(spec)
        self.latent_size, self.num_actions = self.vae.latent_size, spec.num_actions
        self.state_shape = (self.latent_size + 2 * self.hidden_size,)
        self.feature_shape = (self.latent_size + self.hidden_size,)
        self.memory = Memory(self.latent_size, self.num_actions, self.hidden_size, self.mixtures, self.reward_loss)

    def gradient_parts(self) -> list[nn.Module]:
        """The VAE and the memory: neither knows of the other's loss."""
        return [self.vae, self.memory]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the VAE's parameter groups and those of the rest."""
        return [*self.vae.parameter_groups(), *self.optimization.groups(self.memory.parameters())]

    def refit(self, batch: Batch, validation_windows: Batch | None = None) -> None:
        """Let fresh networks start from the median picture, and from outcomes as frequent as they are."""
        self.vae.refit(batch)
        if self.updates == 0:
            self.memory.outcomes.start(batch)

    def learns(self) -> tuple[bool, bool]:
        """Return whether the VAE learns by now, and whether the rest does; outside training both are measured."""
        if self.vae_updates is None or not self.training:
            return True, True
        return self.updates < self.vae_updates, self.updates >= self.vae_updates

    def loss(self, batch: Batch) -> Loss:
        """Return the losses of the parts whose turn it is, in one sum."""
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
        """Predict what follows each row of the windows, from nothing but what came before in them.

        A frame that closes an episode is no target: nobody acts on it, and emulators do not draw it.
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
        weights = has_successor.flatten()
        reward_loss = weighted_mean(outcomes.reward_losses(reward, batch.reward[:, :-1].flatten()), weights)
        goes_on = batch.continuation[:, :-1].flatten()
        continuation_loss = weighted_mean(outcomes.continuation_losses(continuation, goes_on), weights)
        loss = nll + self.outcome_weight * (reward_loss + continuation_loss)
        parts = {"nll": nll, "reward": reward_loss, "continuation": continuation_loss}
        self.density = nll.detach()
        return loss, {name: part.detach() for name, part in parts.items()}

    def nonfinite_reason(self) -> str:
        """Name a mixture that collapsed."""
        if self.density is None or self.density.isfinite():
            return ""
        return f"the mixture density of the MDN-RNN collapsed (nll {self.density.item()})"

    def inputs(self, z: Tensor, action: Tensor) -> Tensor:
        """Return what the LSTM takes in, (..., Z + A): z and the weights of the action."""
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
        """Return the states of all rows; a window begins without memories."""
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
        """Return the mean of z, and the memory of what came before."""
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

    def features(self, state: Tensor) -> Tensor:
        """Return z and h, (B, Z + H)."""
        return state[:, : self.latent_size + self.hidden_size]

    def decode(self, state: Tensor) -> Tensor:
        """Return the frame in [0, 1], (B, C, H, W)."""
        return self.vae.decode(state[:, : self.latent_size])

    def updated(self) -> None:
        """Count, for the order of learning."""
        if self.vae_updates is None or self.updates < self.vae_updates:
            self.vae.updated()
        super().updated()
