"""The contract of every world model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning
import torch
from torch import Tensor

from modules.batch import Batch
from modules.errors import UserError

CAPABILITIES = frozenset({"step", "reward", "decode", "gradient"})


class Spec(NamedTuple):
    """What a world looks like: all that networks need to be built."""

    observation_shape: tuple[int, ...]
    """(C, H, W) of a single frame, or (D,) of a vector."""
    frame_stack: int
    """Frames in an observation; 1 for vectors."""
    num_actions: int


class Step(NamedTuple):
    """What an action did, read off the state after it: the targets are row t's."""

    state: Tensor
    """(B, *state_shape)"""
    reward: Tensor
    """(B,) expected."""
    continuation: Tensor
    """(B,) probability that the episode goes on; ones where it is not modelled."""


class WorldModel(lightning.LightningModule):
    """A learned world: its whole state is one tensor with a leading batch dimension.

    A subclass builds its networks in `build`, and trains through `loss`. Alone it is a LightningModule that the
    Trainer fits; inside an Agent only the methods of the contract run, so they use no hooks and no `self.log`.

    Args:
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW, on weights of two or more dimensions.
        warmup: updates of the run over which the learning rate rises from 0.
        decay: let the learning rate fall to 0 along a cosine over the run's `max_steps`.
    """

    state_shape: tuple[int, ...]
    feature_shape: tuple[int, ...]
    capabilities: frozenset[str] = frozenset()
    """Of {step, reward, decode, gradient}: what callers may ask for."""
    temperature: float = 0.0
    """Of sampled steps; 0 is the mode."""
    max_horizon: int | None = None
    """Steps that it can dream at most; null where there is no limit."""
    capturable: bool = False
    """Whether a CUDA graph may replay its step and its policy: they always do the same, whatever the numbers are."""

    def __init__(self, lr: float = 1e-3, weight_decay: float = 0.0, warmup: int = 0, decay: bool = False) -> None:
        super().__init__()
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.decay = decay
        self.updates = 0
        """Optimizer steps that were made."""
        self.spec: Spec | None = None

    # The contract.

    def build(self, spec: Spec) -> None:
        """Make the networks, and set `state_shape` and `feature_shape`."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> tuple[Tensor | None, dict[str, Tensor], Tensor | None]:
        """Return the total loss, its parts to log, and `encode`'s states, detached, where they came for free."""
        raise NotImplementedError

    def encode(self, batch: Batch) -> Tensor:
        """Return the states (B, T, *state_shape) of real rows; a scan over `observe` unless a model knows better."""
        state = self.initial(batch.shape[0])
        previous_action = batch.previous_action()
        states = []
        assert batch.observation is not None
        for t in range(batch.shape[1]):
            state = self.observe(state, previous_action[:, t], batch.observation[:, t], batch.is_first[:, t])
            states.append(state)
        return torch.stack(states, dim=1)

    def initial(self, batch_size: int) -> Tensor:
        """Return the state (batch_size, *state_shape) of a model that has seen nothing yet."""
        raise NotImplementedError

    def observe(self, state: Tensor, action: Tensor, observation: Tensor, is_first: Tensor) -> Tensor:
        """Return the state after observation o_t, which action a_{t-1} led to from `state`."""
        raise NotImplementedError

    def step(self, state: Tensor, action: Tensor) -> Step:
        """Predict what an action does: (B,) int64, or (B, A) float weights to differentiate."""
        raise NotImplementedError

    def features(self, state: Tensor) -> Tensor:
        """Return what a policy sees, (B, *feature_shape)."""
        return state

    def decode(self, state: Tensor) -> Tensor:
        """Return the newest frame in [0, 1], or the vector, (B, *observation_shape)."""
        raise NotImplementedError

    def refit(self, batch: Batch, validation_windows: Batch | None = None) -> None:
        """Fit all that is not learned by gradient descent: normalisers, palettes, elites, processes, trees.

        Args:
            batch: real training rows.
            validation_windows: rows of the validation environments, where there are any.
        """

    def updated(self) -> None:
        """Count an optimizer step; whatever else follows from one, such as target networks, is a subclass's to add."""
        self.updates += 1

    def get_extra_state(self) -> dict[str, int]:
        """Return what checkpoints keep beside the weights."""
        return {"updates": self.updates}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Go on counting where it stopped."""
        self.updates = state["updates"]

    def gradient_parts(self) -> list[torch.nn.Module]:
        """Return the parts whose gradients are clipped, each by its own norm: those that learn from the same loss."""
        return [self]

    def nonfinite_reason(self) -> str:
        """Name what went wrong in the last loss, where it is not finite and the model knows better; else ""."""
        return ""

    # Alone under the Trainer.

    def configure_model(self) -> None:
        """Build the networks from the datamodule's spec, once."""
        if self.spec is None:
            self.build_from(self.trainer.datamodule.spec)  # type: ignore[attr-defined]
            check_gradients(self, self.trainer.world_size)

    def build_from(self, spec: Spec) -> None:
        """Build for a world; checkpoints keep its spec."""
        self.build(spec)
        self.spec = spec

    def setup(self, stage: str) -> None:
        """Check the declared capabilities."""
        unknown = self.capabilities - CAPABILITIES
        assert not unknown, f"{type(self).__name__} declares unknown capabilities {sorted(unknown)}"

    def training_step(self, batch: dict[str, Batch], batch_idx: int) -> Tensor | None:
        """Learn from real rows."""
        loss, parts, _ = self.loss(batch["real"])
        priority = parts.pop("priority", None)  # (B,), of windows that were drawn by it
        if priority is not None:
            self.trainer.datamodule.update_priorities(batch["real"], priority)  # type: ignore[attr-defined]
        # Lightning's bookkeeping costs a millisecond per value: only where its loggers write.
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log_dict({f"train/{name}": value for name, value in parts.items()}, batch_size=1)
            if loss is not None:
                self.log("loss", loss.detach(), prog_bar=True, logger=False, batch_size=1)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Tell the schedules that an update was made, before callbacks save them."""
        super().optimizer_step(*args, **kwargs)
        self.updated()

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip each part by its own norm."""
        if len(parts := self.gradient_parts()) == 1 or not gradient_clip_val or gradient_clip_algorithm == "value":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        for part in parts:
            torch.nn.utils.clip_grad_norm_(list(part.parameters()), gradient_clip_val)

    def validation_step(self, batch: dict[str, Batch], batch_idx: int) -> None:
        """Measure the loss on held-out rows."""
        self._evaluation_step(batch, "validation")

    def test_step(self, batch: dict[str, Batch], batch_idx: int) -> None:
        """Measure the loss on held-out rows."""
        self._evaluation_step(batch, "test")

    def _evaluation_step(self, batch: dict[str, Batch], stage: str) -> None:
        _, parts, _ = self.loss(batch["real"])
        size = batch["real"].shape[0]
        self.log_dict({f"{stage}/{name}": value for name, value in parts.items()}, batch_size=size, sync_dist=True)

    def predict_step(self, batch: dict[str, Batch], batch_idx: int) -> dict[str, Tensor]:
        """Dream from the first row of held-out windows on, with the actions that were really taken.

        Returns:
            action (B, T - 1), the dreamed reward and continuation (B, T - 1), and, where the model decodes, frame
            (B, T - 1, *observation_shape) in [0, 1].
        """
        from modules.imagination import imagine  # which imports this file

        real = batch["real"]
        dream = imagine(self, None, self.encode(real[:, :1])[:, 0], real.shape[1] - 1, actions=real.action[:, :-1])
        assert dream.state is not None
        predictions = {name: getattr(dream, name)[:, :-1] for name in ("action", "reward", "continuation")}
        if "decode" in self.capabilities:
            predictions["frame"] = torch.stack([self.decode(state) for state in dream.state.unbind(1)[1:]], dim=1)
        return predictions

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return AdamW's parameter groups: no weight decay on biases and gains."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in parameters if p.ndim >= 2], "lr": self.lr, "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "lr": self.lr, "weight_decay": 0.0},
        ]

    def learning_rate_factor(self, trainer: Any) -> Callable[[int], float]:
        """Return what multiplies the learning rate at an update: warm-up and, if asked for, cosine decay."""
        total = trainer.estimated_stepping_batches if self.decay else math.inf
        if self.decay and math.isinf(total):
            raise UserError("model.decay needs an end to decay to: set trainer.max_steps or trainer.max_epochs")

        def factor(update: int) -> float:
            rise = min(1.0, (update + 1) / self.warmup) if self.warmup else 1.0
            fall = 0.5 * (1 + math.cos(math.pi * min(1.0, update / total))) if self.decay else 1.0
            return rise * fall

        return factor

    def configure_optimizers(self) -> Any:
        """AdamW with a schedule."""
        optimizer = torch.optim.AdamW(self.parameter_groups())
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.learning_rate_factor(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the world's spec beside the weights."""
        if self.spec is not None:
            checkpoint["spec"] = dict(self.spec._asdict())


def check_gradients(module: torch.nn.Module, num_processes: int) -> None:
    """Raise a UserError where several processes would have no gradients to share."""
    if num_processes > 1 and not any(parameter.requires_grad for parameter in module.parameters()):
        raise UserError("processes share gradients, and nothing here learns by them: set trainer.devices to 1")
