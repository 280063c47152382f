"""Accuracy of dreams per horizon, compared with what really happened."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from modules.batch import Batch
from modules.imagination import evaluating, imagine
from modules.world_model import WorldModel
from pipelines.dreams.foresight import FORESIGHT_COLUMNS, Foreseen, foreseen, judge

CHANGED = 5 / 255
"""Smallest difference to the last frame before the dream by which a pixel counts as changed."""

COLUMNS = (
    "horizon", "windows", "psnr", "copy_psnr", "ssim", "copy_ssim", "changed", "copy_changed", "either", "copy_either",
    *FORESIGHT_COLUMNS,
)  # fmt: skip


@dataclass(frozen=True)
class Dreams:
    """Open-loop dreams of validation windows, with the actions that were really taken."""

    first: Tensor
    """(B, C, H, W): last frame that the model observed."""
    real: Tensor
    """(B, T, C, H, W): real frames after the last observed one."""
    dreamed: Tensor
    """(B, T, C, H, W): dreamed frames after the last observed one."""
    valid: Tensor
    """(B, T) bool: True if the real frame exists: no end and no cut up to it, and no termination at it."""
    outcomes: Foreseen
    """Rewards and ends, dreamed and real."""


@torch.no_grad()
def dream(model: WorldModel, batch: Batch, context: int = 1) -> Dreams:
    """Dream on from the first `context` rows of every window, with the model in evaluation mode.

    Args:
        model: world model with the capabilities step and decode.
        batch: validation windows (B, T) of frame stacks.
        context: number of rows that the model observes before it dreams, at least 1.
    """
    assert batch.observation is not None
    seen, rest = batch[:, :context], batch[:, context - 1 :]
    with evaluating(model):
        states = model.encode(seen)[:, -1]
    dreamed = imagine(model, None, states, rest.shape[1] - 1, actions=rest.action[:, :-1])
    assert dreamed.state is not None
    channels = model.spec.observation_shape[0] if model.spec else 1
    frames = batch.observation[:, context - 1 :, -channels:].float() / 255
    outcomes = foreseen(model, rest, dreamed)
    frames_dreamed = torch.stack([model.decode(state) for state in dreamed.state.unbind(1)[1:]], dim=1)
    return Dreams(
        first=frames[:, 0],
        real=frames[:, 1:],
        dreamed=frames_dreamed,
        valid=outcomes.reached & ~outcomes.terminated,
        outcomes=outcomes,
    )


def per_horizon(dreams: Dreams, ssim_at: Collection[int] | None = None) -> list[dict[str, float]]:
    """Measure dreams at every horizon, and compare them with copying the last frame.

    Args:
        dreams: dreams of validation windows.
        ssim_at: horizons at which SSIM is measured, nan at all others; None measures all. SSIM takes as long as all
            other measures together.

    Returns:
        A row per horizon 1 .. T with the keys of COLUMNS. "changed" is the mean squared error on pixels that changed in
        reality. "either" is the mean squared error on pixels that changed in reality or in the dream, so that it
        includes artefacts. PSNR is computed from the mean squared error over all windows. What `judge` measures of
        rewards and ends includes all steps up to the horizon.
    """
    return [_at(dreams, t, with_ssim=ssim_at is None or t + 1 in ssim_at) for t in range(dreams.real.shape[1])]


def _at(dreams: Dreams, t: int, with_ssim: bool) -> dict[str, float]:
    valid = dreams.valid[:, t]
    first, real, dreamed = dreams.first[valid], dreams.real[valid, t], dreams.dreamed[valid, t]
    changed = (real - first).abs() > CHANGED
    either = changed | ((dreamed - first).abs() > CHANGED)
    row: dict[str, float] = {"horizon": t + 1, "windows": int(valid.sum())}
    for prefix, guess in (("", dreamed), ("copy_", first)):
        error = (guess - real) ** 2
        row[f"{prefix}psnr"] = float(-10 * error.mean().clamp(min=1e-10).log10())
        row[f"{prefix}ssim"] = _ssim(guess, real) if with_ssim else float("nan")
        row[f"{prefix}changed"] = float(error[changed].mean())
        row[f"{prefix}either"] = float(error[either].mean())
    return row | judge(dreams.outcomes, slice(t + 1))


def _ssim(guess: Tensor, real: Tensor) -> float:
    if len(real) == 0:
        return float("nan")
    similarity = structural_similarity_index_measure(guess, real, data_range=1.0)
    assert isinstance(similarity, Tensor)
    return float(similarity)


def side_by_side(dreams: Dreams) -> Tensor:
    """Return films (B, T + 1, 3, H, W') in [0, 1]: real, dreamed, and their difference, side by side.

    The first frame is the last one that the model observed. After the end of a window the real third is black.
    """
    first = dreams.first[:, None]
    real = torch.cat([first, dreams.real * dreams.valid[..., None, None, None]], dim=1)
    dreamed = torch.cat([first, dreams.dreamed], dim=1)
    error = (real - dreamed).abs()
    films = [film.expand(-1, -1, 3, -1, -1) for film in (real, dreamed, error)]
    gap = torch.ones_like(films[0][..., :2]) * 0.5
    return torch.cat([films[0], gap, films[1], gap, films[2]], dim=-1)


def strip(dreams: Dreams, window: int, horizons: list[int]) -> Tensor:
    """Return one window as a picture (3, 3 * H, len(horizons) * W) in [0, 1]: rows real, dreamed, error."""
    steps = torch.tensor(horizons) - 1
    real, dreamed = dreams.real[window, steps], dreams.dreamed[window, steps]
    rows = torch.stack([real, dreamed, (real - dreamed).abs()])
    return rearrange(rows.expand(-1, -1, 3, -1, -1), "row step c h w -> c (row h) (step w)")
