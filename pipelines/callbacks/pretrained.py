"""A world model that was trained before."""

from __future__ import annotations

from pathlib import Path

from lightning import Callback, LightningModule, Trainer

from modules.agent import world_model
from modules.errors import UserError
from modules.world_model import WorldModel
from pipelines import checkpoints
from pipelines.callbacks.refit import Refit


class Pretrained(Callback):
    """Starts a run with the world model of a checkpoint, by itself or an agent's, or with a part of the model alone.

    With `rounds.model_updates: 0` an agent's policy learns in it as it is. `Refit` is refused beside a whole model.

    Args:
        checkpoint: of a run on the same world, with a model of the same class and size.
        part: of the run's world model that the checkpoint's is: `vae` starts an MDN-RNN with a VAE that was trained by
            itself. Null is the whole model.
    """

    def __init__(self, checkpoint: Path, part: str | None = None) -> None:
        self.checkpoint = checkpoint
        self.part = part

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the weights; a run that goes on has its own already."""
        if trainer.ckpt_path is not None:
            return
        model = world_model(pl_module)
        if self.part is not None:
            part = getattr(model, self.part, None)
            if not isinstance(part, WorldModel):
                raise UserError(
                    f"{type(model).__name__} has no part {self.part} that is a model by itself, as a vae is"
                )
            model = part
        module, kept = checkpoints.load(self.checkpoint)
        checkpoints.check_world(self.checkpoint, kept, trainer.datamodule.name)  # type: ignore[attr-defined]
        trained = world_model(module)
        if type(trained) is not type(model):
            raise UserError(f"{self.checkpoint} holds a {type(trained).__name__}, expected a {type(model).__name__}")
        try:
            model.load_state_dict(trained.state_dict())
        except RuntimeError as error:
            reason = [line.strip() for line in str(error).splitlines()][:2][-1]
            raise UserError(f"the weights in {self.checkpoint} do not fit {type(model).__name__}: {reason}") from None
        if self.part is None and any(isinstance(callback, Refit) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise UserError("Refit would change what the pretrained model learned from: leave it out beside Pretrained")
