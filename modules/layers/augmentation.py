"""Changes to pictures that leave their meaning as it is (Kostrikov et al. 2021; Schwarzer et al. 2021, appendix)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def shift(pictures: Tensor, limit: int = 4) -> Tensor:
    """Move each picture (B, C, H, W) by up to `limit` pixels each way; its edges are repeated."""
    batch_size, _, height, width = pictures.shape
    padded = F.pad(pictures, (limit, limit, limit, limit), mode="replicate")
    device = pictures.device
    corner = torch.randint(2 * limit + 1, (2, batch_size, 1), device=device)
    row = corner[0] + torch.arange(height, device=device)
    column = corner[1] + torch.arange(width, device=device)
    of = torch.arange(batch_size, device=device)[:, None, None]
    return padded.movedim(1, -1)[of, row[:, :, None], column[:, None, :]].movedim(-1, 1)


def brighten(pictures: Tensor, scale: float = 0.05) -> Tensor:
    """Multiply each picture (B, C, H, W) by a number close to 1, of a normal distribution cut at two deviations."""
    noise = torch.randn(len(pictures), 1, 1, 1, device=pictures.device).clamp(-2, 2)
    return pictures * (1 + scale * noise)
