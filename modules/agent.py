"""A world model and a policy that learn together."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from modules.batch import Batch
from modules.errors import UserError
from modules.learner import Learner, Loss, Spec, prefixed
from modules.policies.policy import Policy
from modules.rounds import Rounds, Turn
from modules.world_model import WorldModel

Source = Literal["real", "dream", "both", "imagined"]


class Agent(Learner):
    """Trains any world model and any policy with one summed loss and one optimizer with groups per part.

    A training batch is {"real": Batch, "dream": Batch}; either may be absent. The model learns from real rows: from
    those under "model" if there are any, so that both parts may learn from windows of their own kind. The algorithms
    differ in the rows that the policy learns from. No gradient passes between the parts. The gradient of
    each part is clipped by its own norm. A part does not change outside its turn in the round.

    Args:
        world_model: the world model; an IdentityModel makes the policy model-free.
        policy: the policy that acts.
        policy_learns_from: rows that the policy learns from: "real" (a model-free baseline), "dream" (MBPO), "both"
            (Dyna), or "imagined": the policy dreams by itself from states of real rows (backprop through the model).
        rounds: number of updates of each part in a round.
    """

    debug: ClassVar[dict[str, Any]] = {"rounds": {"model_updates": 2, "policy_updates": 2}}
    world_model: WorldModel
    policy: Policy

    def __init__(
        self,
        world_model: WorldModel,
        policy: Policy,
        policy_learns_from: Source = "both",
        rounds: Rounds = Rounds(),
    ) -> None:
        super().__init__()
        self.world_model = world_model
        self.policy = policy
        self.policy_learns_from = policy_learns_from
        self.rounds = rounds
        self.without_dreams = False
        """Set by a callback for an update without dreams: the policy learns from real rows alone, or waits for dreams
        while the model learns."""

    @property
    def turn(self) -> Turn:
        """Return the turn of the current update; only the model learns where the policy waits for dreams."""
        turn = super().turn
        if self.without_dreams and self.policy_learns_from == "dream":
            return Turn(turn.number, model=True, policy=False)
        return turn

    @property
    def trained_policy(self) -> Policy:
        """Return the policy."""
        return self.policy

    def build_from(self, spec: Spec) -> None:
        """Build both parts for a spec; checkpoints store the spec."""
        model = self.world_model
        model.build_from(spec)
        if not hasattr(model, "feature_shape"):
            raise UserError(f"{type(model).__name__} has no features that a policy could see")
        self.trained_policy.build(model.feature_shape, spec.num_actions)
        self.spec = spec

    def setup(self, stage: str) -> None:
        """Check that world model, policy and data fit together."""
        super().setup(stage)
        model, policy, source = self.world_model, self.trained_policy, self.policy_learns_from
        if source != "real":
            model.require("step", "reward", by="a policy that learns from dreams")
        if (source == "imagined") != policy.imagines:
            own = "dreams by itself" if policy.imagines else "does not dream by itself"
            wanted = "imagined" if policy.imagines else "real, dream or both"
            raise UserError(f"{type(policy).__name__} {own}: set model.policy_learns_from to {wanted}, not {source}")
        if policy.differentiates:
            model.require("gradient", by=type(policy).__name__)
        storage = getattr(self.trainer.datamodule, "storage", None)  # type: ignore[attr-defined]
        columns = policy.extras if storage is None else storage.extras
        absent = [name for name in policy.extras if name not in columns]
        if stage == "fit" and source != "dream" and absent:
            raise UserError(
                f"{type(policy).__name__} learns from extra columns that its actor writes: "
                f"set data.storage.extras to [{', '.join(policy.extras)}]"
            )

    def learn(self, batch: dict[str, Batch]) -> Loss:
        """Return the sum of the losses of the parts whose turn it is."""
        real, turn = batch.get("real"), self.turn
        model = policy = Loss(None, {})
        rows = batch.get("model", real)
        if turn.model and rows is not None:
            model = self.world_model.loss(rows)
        if turn.policy:
            policy = self.policy_loss(real, batch.get("dream"), model.states if rows is real else None)
        totals = [loss.total for loss in (model, policy) if loss.total is not None]
        total = torch.stack(totals).sum() if totals else None
        logs = prefixed("train", model.logs) | prefixed("policy", policy.logs)
        priority = policy.priority if model.priority is None else model.priority
        return Loss(total, logs, model.states, priority)

    def policy_loss(self, real: Batch | None, dream: Batch | None, states: Tensor | None = None) -> Loss:
        """Return the policy's loss on the rows that it learns from, with equal weight for every reached transition.

        Args:
            real: real rows.
            dream: dreamed rows.
            states: states of the real rows if they are known already.

        Raises:
            UserError: the policy learns from dreams, but the batch has none.
        """
        source = self.policy_learns_from
        if dream is None and source in ("dream", "both") and not self.without_dreams:
            raise UserError(
                f"policy_learns_from is {source}, but no callback launches dreams: add one such as "
                "pipelines.callbacks.dreaming.dyna.Dyna or pipelines.callbacks.dreaming.mbpo.Mbpo"
            )
        rows = []
        if real is not None and source != "dream":
            if states is None:
                with torch.no_grad():
                    states = self.world_model.encode(real)
            rows.append(("real", real.replace(state=states.detach())))
        if dream is not None and source in ("dream", "both"):
            rows.append(("dream", dream))
        total = priority = None
        logs: dict[str, Tensor] = {}
        reached = [self.trained_policy.transitions(batch) for _, batch in rows]
        for (kind, batch), number in zip(rows, reached, strict=True):
            loss = self.trained_policy.loss(batch, self.world_model)
            priority = loss.priority if kind == "real" else priority
            if loss.total is not None:
                share = number / torch.stack(reached).sum().clamp(min=1e-6) * loss.total
                total = share if total is None else total + share
            logs |= {(name if len(rows) == 1 else f"{kind}_{name}"): value for name, value in loss.logs.items()}
        return Loss(total, logs, priority=priority)
