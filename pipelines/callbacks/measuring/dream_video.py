"""The callback that films reality beside the dream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from rich.console import Console

from modules.errors import UserError
from pipelines.callbacks.run import Run
from pipelines.display.films import enlarge, write_gif, write_mp4, write_png
from pipelines.dreams.metrics import dream, side_by_side, strip


class DreamVideo(Callback):
    """Writes dream.gif, dream.mp4 and dream.png: held-out play, the open-loop dream of it, and their difference.

    The model observes `context` rows and then receives only the actions. The callback runs after every validation and
    after `test`. It shows the held-out windows with the most motion in reality.

    Args:
        horizon: number of dreamed steps.
        num_windows: number of films, placed one below the other.
        horizons: dreamed steps that dream.png shows.
        fps: frames per second of the film.
        scale: screen pixels per pixel of a frame.
        context: rows that the model observes before it dreams.
    """

    def __init__(
        self,
        horizon: int = 50,
        num_windows: int = 3,
        horizons: tuple[int, ...] = (1, 2, 3, 5, 8, 10, 15, 25, 50),
        fps: int = 10,
        scale: int = 2,
        context: int = 4,
    ) -> None:
        if min(horizon, num_windows, fps, scale, context) < 1:
            raise UserError("dream_video needs horizon, num_windows, fps, scale and context of at least 1")
        self.horizon = horizon
        self.num_windows = num_windows
        self.horizons = horizons
        self.fps = fps
        self.scale = scale
        self.context = context

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a film of a dream beside reality."""
        if trainer.is_global_zero and not trainer.sanity_checking:
            self.film(Run(trainer))
            if Run(trainer).command == "validate":
                self.tell(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a film of a dream beside reality, and print its path."""
        if trainer.is_global_zero:
            self.film(Run(trainer))
            self.tell(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the path of the film."""
        if trainer.is_global_zero:
            self.tell(trainer)

    def film(self, run: Run) -> None:
        """Dream the held-out windows and write the film and the picture."""
        model = run.model
        if model.spec is None or len(model.spec.observation_shape) != 3:
            raise UserError(f"dream_video films pictures: {type(model).__name__} predicts vectors")
        batch = run.data.validation_windows(self.context + self.horizon, 32)
        assert batch.observation is not None
        frames = batch.observation[:, :, -1].float()
        motion = (frames.diff(dim=1).abs() > 5).float().mean(dim=(2, 3)) * batch.has_successor().cumprod(dim=1)
        liveliest = motion.sum(dim=1).argsort(descending=True)[: self.num_windows]
        with run.precision():
            dreams = dream(model, batch[liveliest].to(run.learner.device), self.context)
        films = _pixels(side_by_side(dreams).movedim(2, -1))
        film = enlarge(np.concatenate(list(films), axis=1), self.scale)
        horizons = [step for step in self.horizons if step <= dreams.real.shape[1]]
        strips = [_pixels(strip(dreams, window, horizons).movedim(0, -1)) for window in range(len(films))]
        picture = np.concatenate(strips, axis=0)
        folder = run.folder
        write_gif(folder / "dream.gif", film, self.fps)
        write_mp4(folder / "dream.mp4", film, self.fps)
        write_png(folder / "dream.png", enlarge(picture, self.scale))
        for logger in run.wandb():
            logger.log_video("dream", [str(folder / "dream.mp4")], step=run.updates, format=["mp4"])

    def tell(self, trainer: Trainer) -> None:
        """Print the paths of the files."""
        folder = Path(trainer.default_root_dir)
        if (folder / "dream.gif").exists():
            text = f"real | dreamed | error: {folder / 'dream.gif'}, .mp4 and, at several horizons, .png"
            Console().print(text, soft_wrap=True)


def _pixels(values: Any) -> np.ndarray:
    return (values.clamp(0, 1) * 255).round().byte().cpu().numpy()
