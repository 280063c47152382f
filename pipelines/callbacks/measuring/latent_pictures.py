"""The callback that draws pictures of a VAE's latent space and of dreams in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from torch import Tensor

from modules.batch import Batch
from modules.errors import UserError
from modules.imagination import evaluating
from modules.latents.vae import VAE
from modules.world_model import WorldModel
from pipelines.callbacks.run import Run
from pipelines.display.films import enlarge, write_png
from pipelines.dreams.metrics import dream

RECONSTRUCTIONS, SAMPLES, TRAVERSALS, TEMPERATURES = (
    f"{name}.png" for name in ("reconstructions", "samples", "traversals", "temperatures")
)


class LatentPictures(Callback):
    """Draws held-out frames and their reconstructions, samples of the prior, traversals, and dreams at several tau.

    The callback runs after every validation and after `test`, for a VAE or for a world model that has one. Each row of
    traversals.png varies one number of z; the numbers with the highest variance are at the top. temperatures.png shows
    reality above open-loop dreams of it, which differ only in the temperature.

    Args:
        num_frames: pictures in a row of reconstructions and samples.
        num_numbers: number of rows of the traversals.
        span: range of a traversal to both sides, in standard deviations of the prior.
        temperatures: temperatures of the dreams.
        horizons: dreamed steps that temperatures.png shows.
        context: rows that the model observes before it dreams.
        scale: screen pixels per pixel of a frame.
    """

    def __init__(
        self,
        num_frames: int = 10,
        num_numbers: int = 8,
        span: float = 3.0,
        temperatures: tuple[float, ...] = (0.0, 0.5, 1.0, 1.3),
        horizons: tuple[int, ...] = (1, 2, 3, 5, 8, 12, 20, 30, 40, 50),
        context: int = 16,
        scale: int = 2,
    ) -> None:
        if min(num_frames, num_numbers, context, scale, *horizons) < 1 or span <= 0:
            raise UserError(
                "latent_pictures needs num_frames, num_numbers, horizons, context and scale of at least 1, and span "
                "above 0"
            )
        if temperatures and min(temperatures) < 0:
            raise UserError(f"temperatures must be at least 0, which takes the mode: got {min(temperatures)}")
        self.num_frames, self.num_numbers, self.span = num_frames, num_numbers, span
        self.temperatures, self.horizons, self.context, self.scale = temperatures, horizons, context, scale

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the world model is a VAE or has one."""
        vae_of(Run(trainer).model)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the pictures of the latent space."""
        if trainer.is_global_zero and not trainer.sanity_checking:
            self.draw(Run(trainer))
            if Run(trainer).command == "validate":
                self.tell(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the pictures of the latent space, and print their paths."""
        if trainer.is_global_zero:
            self.draw(Run(trainer))
            self.tell(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the paths of the pictures."""
        if trainer.is_global_zero:
            self.tell(trainer)

    def draw(self, run: Run) -> None:
        """Write the pictures."""
        model = run.model
        vae = vae_of(model)
        batch = run.data.validation_windows(self.context + max(self.horizons), 64).to(run.learner.device)
        with run.precision(), torch.random.fork_rng():
            torch.manual_seed(0)  # the same noise every time: pictures of a run can be compared
            pictures = {
                RECONSTRUCTIONS: reconstructions(vae, batch, self.num_frames),
                SAMPLES: samples(vae, self.num_frames),
                TRAVERSALS: traversals(vae, batch, self.num_numbers, self.num_frames, self.span),
            }
            if {"step", "decode"} <= model.capabilities and self.temperatures:
                pictures[TEMPERATURES] = self.dreams(model, batch)
        for name, rows in pictures.items():
            write_png(run.folder / name, enlarge(sheet(rows), self.scale))
        run.log_pictures("latents", [run.folder / name for name in pictures])

    def dreams(self, model: WorldModel, batch: Batch) -> Tensor:
        """Return reality and the dream at each temperature (1 + temperatures, horizons, C, H, W) of one window."""
        before = model.temperature
        frames = batch.observation[:, :, -1].float()  # type: ignore[index]
        motion = (frames.diff(dim=1).abs() > 5).float().mean(dim=(2, 3)) * batch.has_successor().cumprod(dim=1)
        liveliest = batch[motion.sum(dim=1).argmax()[None]]
        rows: list[Tensor] = []
        try:
            for temperature in self.temperatures:
                model.temperature = temperature
                dreamed = dream(model, liveliest, self.context)
                steps = torch.tensor([step for step in self.horizons if step <= dreamed.real.shape[1]]) - 1
                if not rows:
                    rows.append((dreamed.real * dreamed.valid[..., None, None, None])[0, steps])
                rows.append(dreamed.dreamed[0, steps])
        finally:
            model.temperature = before
        return torch.stack(rows)

    def tell(self, trainer: Trainer) -> None:
        """Print the paths of the files."""
        folder = Path(trainer.default_root_dir)
        names = [name for name in (RECONSTRUCTIONS, SAMPLES, TRAVERSALS, TEMPERATURES) if (folder / name).exists()]
        if names:
            Console().print(f"the latent space: {folder / names[0]}, {', '.join(names[1:])}", soft_wrap=True)


def vae_of(model: Any) -> VAE:
    """Return the VAE that a world model is or has.

    Raises:
        UserError: the model has no VAE.
    """
    vae = model if isinstance(model, VAE) else getattr(model, "vae", None)
    if not isinstance(vae, VAE):
        raise UserError(f"latent_pictures needs a VAE: {type(model).__name__} has none")
    return vae


@torch.no_grad()
def reconstructions(vae: VAE, batch: Batch, num: int) -> Tensor:
    """Return held-out frames, their reconstructions and the differences, (3, num, C, H, W) in [0, 1]."""
    assert batch.observation is not None
    rows = vae.newest(batch.observation)[~batch.is_last]
    frames = rows[torch.linspace(0, len(rows) - 1, num).round().long()]
    with evaluating(vae):
        painted = vae.paint(vae.infer(frames)[0])
    return torch.stack([frames, painted, (frames - painted).abs()])


@torch.no_grad()
def samples(vae: VAE, num: int, rows: int = 3) -> Tensor:
    """Return pictures that are decoded from draws of the prior, (rows, num, C, H, W)."""
    with evaluating(vae):
        return vae.paint(torch.randn(rows * num, vae.latent_size, device=vae.device)).unflatten(0, (rows, num))


@torch.no_grad()
def traversals(vae: VAE, batch: Batch, numbers: int, num: int, span: float) -> Tensor:
    """Return pictures (numbers, num, C, H, W): along a row, one number of a frame's z goes from -span to span."""
    with evaluating(vae):
        z = vae.encode(batch)[~batch.is_last]
        varied = z.var(dim=0).argsort(descending=True)[:numbers]
        walks = z[len(z) // 2].expand(len(varied), num, -1).clone()
        for row, number in enumerate(varied):
            walks[row, :, number] = torch.linspace(-span, span, num, device=z.device)
        return vae.paint(walks.flatten(0, 1)).unflatten(0, (len(varied), num))


def sheet(pictures: Tensor) -> np.ndarray:
    """Arrange pictures (rows, columns, C, H, W) in [0, 1] in one picture (rows * H, columns * W, 3) uint8."""
    laid = rearrange(pictures.expand(-1, -1, 3, -1, -1), "row column c h w -> (row h) (column w) c")
    return (laid.clamp(0, 1) * 255).round().byte().cpu().numpy()
