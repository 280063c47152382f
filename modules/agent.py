"""A world model and a policy that learn together."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any, Literal, NamedTuple

import torch
from lightning import LightningModule
from torch import Tensor, nn

from modules.batch import Batch
from modules.errors import UserError
from modules.layers.returns import reach_weights
from modules.policies.policy import Policy
from modules.world_model import Spec, WorldModel, check_gradients


class Turn(NamedTuple):
    """An update's place in the rounds."""

    number: int
    """Of the round, from 0."""
    model: bool
    """The world model learns."""
    policy: bool
    """The policy learns."""


@dataclass(frozen=True)
class Rounds:
    """Training goes in rounds of updates, in which each part learns a fixed number of times: their ratio is pinned.

    Args:
        model_updates: of the world model in a round; a list gives each round its own, the last one for all that follow.
        policy_updates: of the policy.
        together: both learn from a round's first update on, in one summed loss; else the model first, then the policy.
    """

    model_updates: int | list[int] = 1
    policy_updates: int | list[int] = 1
    together: bool = True

    def __post_init__(self) -> None:
        if [] in (self.model_updates, self.policy_updates):
            raise UserError("rounds need a number of updates, or a list with one for each round: got an empty list")
        for number in range(self._listed() + 1):
            model, policy = self._lengths(number)
            if min(model, policy) < 0 or max(model, policy) < 1:
                raise UserError(f"round {number} needs at least one update of a part: got {model} and {policy}")

    def at(self, update: int) -> Turn:
        """Return the turn of an update, counted from 0."""
        for number in count():
            model, policy = self._lengths(number)
            length = max(model, policy) if self.together else model + policy
            if number >= self._listed():
                # All rounds from here on are alike.
                number, update = number + update // length, update % length
            if update < length:
                return Turn(number, update < model, update < policy if self.together else update >= model)
            update -= length
        raise AssertionError

    def ends(self, updates: int) -> bool:
        """Return whether a round is over after so many updates, at least 1."""
        return self.at(updates).number != self.at(updates - 1).number

    def _listed(self) -> int:
        return max(len(n) - 1 if isinstance(n, list) else 0 for n in (self.model_updates, self.policy_updates))

    def _lengths(self, number: int) -> tuple[int, int]:
        model, policy = (
            n[min(number, len(n) - 1)] if isinstance(n, list) else n for n in (self.model_updates, self.policy_updates)
        )
        return model, policy


class Agent(LightningModule):
    """Any world model and any policy: one summed loss, one optimizer with groups for each part.

    A training batch is {"real": Batch, "dream": Batch}; either may be absent. The model learns from real rows. What the
    policy learns from is the whole difference between algorithms. No gradient passes from one part to the other, each
    part's is clipped by itself, and a part whose turn it is not stands still.

    Args:
        world_model: what is learned of the world; an IdentityModel makes the policy model-free.
        policy: who acts.
        policy_learns_from: "real" (a model-free control), "dream" (MBPO) or "both" (Dyna).
        rounds: how many updates of either part make a round.
    """

    def __init__(
        self,
        world_model: WorldModel,
        policy: Policy,
        policy_learns_from: Literal["real", "dream", "both"] = "both",
        rounds: Rounds = Rounds(),
    ) -> None:
        super().__init__()
        self.world_model = world_model
        self.policy = policy
        self.policy_learns_from = policy_learns_from
        self.rounds = rounds
        self.spec: Spec | None = None

    def configure_model(self) -> None:
        """Build both parts from the datamodule's spec, once."""
        if self.spec is None:
            self.build_from(self.trainer.datamodule.spec)  # type: ignore[attr-defined]
            check_gradients(self, self.trainer.world_size)

    def build_from(self, spec: Spec) -> None:
        """Build for a world; checkpoints keep its spec."""
        model = self.world_model
        model.build_from(spec)
        if not hasattr(model, "feature_shape"):
            raise UserError(f"{type(model).__name__} has no features that a policy could see")
        self.policy.build(model.feature_shape, spec.num_actions)
        self.spec = spec

    def setup(self, stage: str) -> None:
        """Check that the parts go together."""
        model = self.world_model
        model.setup(stage)
        missing = {"step", "reward"} - model.capabilities
        if self.policy_learns_from != "real" and missing:
            raise UserError(
                f"a policy that learns from dreams needs a world model that predicts states and rewards: "
                f"{type(model).__name__} has no {' and no '.join(sorted(missing, reverse=True))}"
            )
        columns = getattr(self.trainer.datamodule, "extras", self.policy.extras)  # type: ignore[attr-defined]
        absent = [name for name in self.policy.extras if name not in columns]
        if stage == "fit" and self.policy_learns_from != "dream" and absent:
            raise UserError(
                f"{type(self.policy).__name__} learns from what its own actor leaves in real rows: "
                f"set data.extras to [{', '.join(self.policy.extras)}]"
            )

    def training_step(self, batch: dict[str, Batch], batch_idx: int) -> Tensor | None:
        """Let the parts learn whose turn it is."""
        real, dream = batch.get("real"), batch.get("dream")
        turn = self.rounds.at(self.trainer.global_step)
        losses: list[Tensor | None] = []
        states: Tensor | None = None
        parts: dict[str, Tensor] = {}
        if turn.model and real is not None:
            loss, logged, states = self.world_model.loss(real)
            losses.append(loss)
            parts |= {f"train/{name}": value for name, value in logged.items()}
        if turn.policy:
            loss, logged = self.policy_loss(real, dream, states)
            losses.append(loss)
            parts |= {f"policy/{name}": value for name, value in logged.items()}
        learned = [loss for loss in losses if loss is not None]
        total = torch.stack(learned).sum() if learned else None
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log_dict(parts, batch_size=1)
            if total is not None:
                self.log("loss", total.detach(), prog_bar=True, logger=False, batch_size=1)
        return total

    def policy_loss(
        self, real: Batch | None, dream: Batch | None, states: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Return the policy's loss over the rows that it may learn from: every transition that is reached counts alike.

        Args:
            real: real rows.
            dream: dreamed rows.
            states: of the real rows, where they are known already.

        Raises:
            UserError: it should learn from dreams, and there are none.
        """
        if dream is None and self.policy_learns_from != "real":
            raise UserError(
                f"policy_learns_from is {self.policy_learns_from}, but nobody dreams: add a callback such as "
                "pipelines.callbacks.dreaming.dyna.Dyna or pipelines.callbacks.dreaming.mbpo.Mbpo"
            )
        rows = []
        if real is not None and self.policy_learns_from != "dream":
            if states is None:
                with torch.no_grad():
                    states = self.world_model.encode(real)
            rows.append(("real", real.replace(state=states.detach())))
        if dream is not None and self.policy_learns_from != "real":
            rows.append(("dream", dream))
        total: Tensor | None = None
        parts: dict[str, Tensor] = {}
        reached = [reach_weights(batch.continuation, batch.has_successor()).sum() for _, batch in rows]
        for (kind, batch), number in zip(rows, reached, strict=True):
            loss, logged = self.policy.loss(batch, self.world_model)
            if loss is not None:
                share = number / torch.stack(reached).sum().clamp(min=1e-6) * loss
                total = share if total is None else total + share
            parts |= {(name if len(rows) == 1 else f"{kind}_{name}"): value for name, value in logged.items()}
        return total, parts

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and tell the parts that they learned: before any callback plays, evaluates or writes a checkpoint."""
        turn = self.rounds.at(self.trainer.global_step)
        super().optimizer_step(*args, **kwargs)
        if turn.model:
            self.world_model.updated()
        if turn.policy:
            self.policy.updated()

    def validation_step(self, batch: dict[str, Batch], batch_idx: int) -> None:
        """Measure the world model's loss on held-out rows."""
        self._evaluation_step(batch, "validation")

    def test_step(self, batch: dict[str, Batch], batch_idx: int) -> None:
        """Measure the world model's loss on held-out rows."""
        self._evaluation_step(batch, "test")

    def _evaluation_step(self, batch: dict[str, Batch], stage: str) -> None:
        _, parts, _ = self.world_model.loss(batch["real"])
        size = batch["real"].shape[0]
        self.log_dict({f"{stage}/{name}": value for name, value in parts.items()}, batch_size=size, sync_dist=True)

    def predict_step(self, batch: dict[str, Batch], batch_idx: int) -> dict[str, Tensor]:
        """Dream as the world model does by itself."""
        return self.world_model.predict_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        """One AdamW over the groups of both parts; the model's keep their schedule."""
        model_groups, policy_groups = self.world_model.parameter_groups(), self.policy.parameter_groups()
        # Without anything to descend, as with tables, the optimizer only counts.
        optimizer = torch.optim.AdamW([*model_groups, *policy_groups])
        factor = self.world_model.learning_rate_factor(self.trainer)
        factors = [factor] * len(model_groups) + [lambda update: 1.0] * len(policy_groups)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip each part by its own norm: the model by the Trainer's value, the policy by its own."""
        if gradient_clip_algorithm not in (None, "norm"):
            raise UserError("an agent's parts are clipped by their norms: trainer.gradient_clip_algorithm must be norm")
        parts: list[tuple[nn.Module, float | None]] = [
            *((part, gradient_clip_val) for part in self.world_model.gradient_parts()),
            (self.policy, self.policy.gradient_clip_val),
        ]
        for part, limit in parts:
            if limit:
                nn.utils.clip_grad_norm_(list(part.parameters()), limit)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the world's spec beside the weights."""
        if self.spec is not None:
            checkpoint["spec"] = dict(self.spec._asdict())


def world_model(module: LightningModule) -> WorldModel:
    """Return the world model that a module is, or the one that it has."""
    model = module.world_model if isinstance(module, Agent) else module
    if not isinstance(model, WorldModel):
        raise UserError(f"a world model is needed, by itself or in an Agent: got {type(module).__name__}")
    return model


def policy_of(module: LightningModule) -> Policy:
    """Return the policy that acts for a module: an agent's, or the one that a world model has of its own."""
    policy = getattr(module, "policy", None)
    if not isinstance(policy, Policy):
        raise UserError(
            f"a policy is needed, an Agent's or a world model's own such as MuZero's: {type(module).__name__} has none"
        )
    return policy
