"""The base of all that the Lightning Trainer fits, a world model alone or an agent; training hooks live only here."""

from __future__ import annotations

from typing import Any, NamedTuple

import lightning
import torch
from torch import Tensor, nn

from modules.batch import Batch
from modules.errors import UserError
from modules.imagination import imagine
from modules.rounds import Rounds, Turn

CAPABILITIES = frozenset({"step", "reward", "decode", "gradient"})


class Spec(NamedTuple):
    """The shapes of an environment that networks are built from."""

    observation_shape: tuple[int, ...]
    """(C, H, W) of a single frame, or (D,) of a vector."""
    frame_stack: int
    """Number of frames in an observation; 1 for vectors."""
    num_actions: int


class Loss(NamedTuple):
    """The result of a model's or a policy's loss on a batch."""

    total: Tensor | None
    """(): loss to minimise; None without gradient descent."""
    logs: dict[str, Tensor]
    """Scalars to log, detached."""
    states: Tensor | None = None
    """(B, T, *state_shape): the states of `encode`, detached, if the loss computed them anyway."""
    priority: Tensor | None = None
    """(B,): priority of each window for prioritised replay."""


class Learner(lightning.LightningModule):
    """Trains a world model and, if present, a policy with one loss and one optimizer.

    Subclasses provide `world_model` and `policy` and implement `learn`. For a world model inside an agent, Lightning
    calls these methods on the agent only.
    """

    world_model: Any
    """The `WorldModel` to train."""
    policy: Any
    """The `Policy` that acts: an agent's, or a world model's own such as MuZero's; None without a policy."""
    rounds = Rounds(model_updates=1, policy_updates=0)

    def __init__(self) -> None:
        super().__init__()
        self.spec: Spec | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the running hook some forty times per update; torch would look for a parameter each time.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    @property
    def turn(self) -> Turn:
        """Return the turn of the current update; between two updates, the turn of the next one."""
        return self.rounds.at(self.trainer.global_step)

    @property
    def trained_policy(self) -> Any:
        """Return the policy with a loss of its own; None without one, or if the world model's loss trains it."""
        return None

    def require_policy(self) -> Any:
        """Return the policy that acts.

        Raises:
            UserError: there is no policy.
        """
        if self.policy is None:
            raise UserError(
                "a policy is needed, that of an Agent or of a world model such as MuZero: "
                f"{type(self).__name__} has none"
            )
        return self.policy

    def learn(self, batch: dict[str, Batch]) -> Loss:
        """Return the loss on real and dreamed rows of the parts whose turn it is."""
        raise NotImplementedError

    # Building.

    def configure_model(self) -> None:
        """Build the networks from the datamodule's spec, once.

        Raises:
            UserError: there are several processes but no gradients to share.
        """
        if self.spec is not None:
            return
        self.build_from(self.trainer.datamodule.spec)  # type: ignore[attr-defined]
        if self.trainer.world_size > 1 and not any(parameter.requires_grad for parameter in self.parameters()):
            raise UserError("several processes share only gradients, and this run has none: set trainer.devices to 1")

    def build_from(self, spec: Spec) -> None:
        """Build the networks for a spec; checkpoints store the spec."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Check the declared capabilities."""
        model = self.world_model
        unknown = model.capabilities - CAPABILITIES
        assert not unknown, f"{type(model).__name__} declares unknown capabilities {sorted(unknown)}"

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the spec beside the weights."""
        if self.spec is not None:
            checkpoint["spec"] = dict(self.spec._asdict())

    # Training.

    def training_step(self, batch: dict[str, Batch], batch_idx: int) -> Tensor | None:
        """Return the loss of a batch, and log it at the steps at which the loggers write."""
        loss = self.learn(batch)
        if loss.priority is not None:
            self.trainer.datamodule.update_priorities(batch["real"], loss.priority)  # type: ignore[attr-defined]
        # Lightning's logging costs a millisecond per value, so log only at the steps at which its loggers write.
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log_dict(loss.logs, batch_size=1)
            if loss.total is not None:
                self.log("loss", loss.total.detach(), prog_bar=True, logger=False, batch_size=1)
        return loss.total

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step and count the update of the parts that learned, before any callback plays, evaluates or saves."""
        turn = self.turn
        super().optimizer_step(*args, **kwargs)
        if turn.model:
            self.world_model.updated()
        if turn.policy and self.trained_policy is not None:
            self.trained_policy.updated()

    def configure_optimizers(self) -> Any:
        """Return one optimizer over the groups of all parts, with each part's learning rates and their schedule.

        Raises:
            UserError: the policy asks for another optimizer than the world model.
        """
        parts = [part for part in (self.world_model, self.trained_policy) if part is not None]
        kinds = [part.optimization.optimizer for part in parts]
        if len(set(kinds)) > 1:
            raise UserError(
                f"one optimizer steps both parts: optimization.optimizer of the world model is {kinds[0]}, "
                f"of the policy {kinds[1]}"
            )
        groups = [part.parameter_groups() for part in parts]
        # Without parameters, as with tables, the optimizer only counts steps.
        optimizer = self.world_model.optimization.make([group for own in groups for group in own])
        schedules = [part.optimization.schedule(self.trainer) for part in parts]
        factors = [factor for factor, own in zip(schedules, groups, strict=True) for _ in own]
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip each part by its own norm: the world model by the Trainer's value, the policy by the policy's value."""
        policy = self.trained_policy
        parts: list[tuple[nn.Module, float | None]] = [
            (part, gradient_clip_val) for part in self.world_model.gradient_parts()
        ]
        if policy is not None:
            if gradient_clip_algorithm not in (None, "norm"):
                raise UserError(
                    "an agent clips the gradient of each part by its norm: set trainer.gradient_clip_algorithm to norm"
                )
            parts.append((policy, policy.gradient_clip_val))
        if len(parts) == 1 or gradient_clip_algorithm == "value":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        for part, limit in parts:
            if limit:
                nn.utils.clip_grad_norm_(list(part.parameters()), limit)

    # Measuring.

    def validation_step(self, batch: dict[str, Batch], batch_idx: int) -> None:
        """Measure the world model's loss on validation rows."""
        self._measure(batch, "validation")

    def test_step(self, batch: dict[str, Batch], batch_idx: int) -> None:
        """Measure the world model's loss on validation rows."""
        self._measure(batch, "test")

    def _measure(self, batch: dict[str, Batch], stage: str) -> None:
        logs = self.world_model.loss(batch["real"]).logs
        self.log_dict(prefixed(stage, logs), batch_size=batch["real"].shape[0], sync_dist=True)

    def predict_step(self, batch: dict[str, Batch], batch_idx: int) -> dict[str, Tensor]:
        """Dream from the first row of validation windows on, with the recorded actions.

        Returns:
            action (B, T - 1), the dreamed reward and continuation (B, T - 1), and, if the model decodes, frame
            (B, T - 1, *observation_shape) in [0, 1].
        """
        model, real = self.world_model, batch["real"]
        dream = imagine(model, None, model.encode(real[:, :1])[:, 0], real.shape[1] - 1, actions=real.action[:, :-1])
        assert dream.state is not None
        predictions = {name: getattr(dream, name)[:, :-1] for name in ("action", "reward", "continuation")}
        if "decode" in model.capabilities:
            predictions["frame"] = torch.stack([model.decode(state) for state in dream.state.unbind(1)[1:]], dim=1)
        return predictions


def prefixed(prefix: str, logs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return logs with a prefix before their names."""
    return {f"{prefix}/{name}": value for name, value in logs.items()}
