"""The callback that starts a run with the weights of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.markup import escape

from modules.errors import UserError
from modules.world_model import WorldModel
from pipelines.callbacks.learning.refit import Refit
from pipelines.callbacks.run import Run
from pipelines.runs import checkpoints
from pipelines.runs.checkpoint_files import read

ALL = "all"


class Pretrained(Callback):
    """Starts a run with the world model of a checkpoint, trained alone or in an agent, or with one part of the model.

    With `rounds.model_updates: 0` the world model stays unchanged while an agent's policy learns in it. `Refit` is
    refused beside a whole model.

    Args:
        checkpoint: checkpoint of a run with a model of the same class and size, on the same world unless part is `all`.
        part: part of the run's world model that takes the checkpoint's weights: `vae` starts an MDN-RNN with a VAE
            that was trained alone. Null takes the whole model. `all` takes everything that the run trains, the policy
            included, on any world, but no counters, as `dreamcade fit --init_from` does.
        fresh: keep the initial values of weights that the checkpoint lacks or has in another shape, and list these
            weights; false refuses such a checkpoint.
    """

    runs_before = ("Collect", "Evaluate", "Evolve", "Refit", "Reanalyse")  # these use the weights

    def __init__(self, checkpoint: Path, part: str | None = None, fresh: bool = False) -> None:
        self.checkpoint = checkpoint
        self.part = part
        self.fresh = fresh

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the weights of the checkpoint into the model; a resumed run keeps its own weights."""
        if trainer.ckpt_path is not None:
            return
        if self.part == ALL:
            kept = read(Path(self.checkpoint))
            with checkpoints.blaming(self.checkpoint):
                weights = {name: value for name, value in kept["state_dict"].items() if isinstance(value, torch.Tensor)}
                self._copy(trainer, pl_module, weights)
            return
        run = Run(trainer)
        model: WorldModel = run.model
        if self.part is not None:
            part = getattr(model, self.part, None)
            if not isinstance(part, WorldModel):
                raise UserError(
                    f"{type(model).__name__} has no part {self.part} that is a world model, such as the vae of MDNRNN"
                )
            model = part
        module, kept = checkpoints.load(self.checkpoint)
        checkpoints.check_world(self.checkpoint, kept, run.data.name)
        trained = module.world_model
        if type(trained) is not type(model):
            raise UserError(f"{self.checkpoint} holds a {type(trained).__name__}, expected a {type(model).__name__}")
        self._copy(trainer, model, trained.state_dict())
        if self.part is None and any(isinstance(callback, Refit) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise UserError("Refit would change the inputs of a pretrained model: use Pretrained without Refit")

    def _copy(self, trainer: Trainer, module: LightningModule, weights: dict[str, torch.Tensor]) -> None:
        wrong = checkpoints.misfits(module, weights)
        name = type(module).__name__
        if wrong and not self.fresh:
            first = "; ".join(list(wrong.values())[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
            raise UserError(
                f"the weights in {self.checkpoint} do not fit {name}: {first} "
                "(--init_fresh true, or fresh: true of Pretrained, keeps the initial values of these weights)"
            )
        fitting = {key: value for key, value in weights.items() if key not in wrong}
        if not any(isinstance(value, torch.Tensor) for value in fitting.values()):
            raise UserError(f"{self.checkpoint} has no weights that fit {name}")
        module.load_state_dict(fitting, strict=False)
        if self.fresh and trainer.is_global_zero:
            left = f"; kept initial values of: {'; '.join(wrong.values())}" if wrong else ""
            line = f"{name} took {len(fitting)} weights of {self.checkpoint}{left}"
            Console().print(escape(line), soft_wrap=True)
