"""Writes films and pictures to disk."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


def enlarge(frames: np.ndarray, factor: int) -> np.ndarray:
    """Return frames (..., H, W, C) with every pixel repeated `factor` times in both directions."""
    return frames.repeat(factor, axis=-3).repeat(factor, axis=-2)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write a picture (H, W, 3) uint8 as PNG."""
    Image.fromarray(picture).save(path)


def write_film(path: Path, frames: np.ndarray, fps: int) -> None:
    """Write frames (T, H, W, 3) uint8 as the kind of film that the path ends with, .gif or .mp4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (write_gif if path.suffix == ".gif" else write_mp4)(path, frames, fps)


def write_gif(path: Path, frames: np.ndarray, fps: int) -> None:
    """Write frames (T, H, W, 3) uint8 as an endless GIF, with one palette for the whole film."""
    palette = Image.fromarray(frames[:: max(1, len(frames) // 8)].reshape(-1, *frames.shape[2:])).quantize(64)
    first, *rest = (Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    first.save(path, save_all=True, append_images=rest, duration=1000 // fps, loop=0, optimize=True)


def write_mp4(path: Path, frames: np.ndarray, fps: int) -> None:
    """Write frames (T, H, W, 3) uint8 as H.264 video; odd sides lose a pixel, because the format needs even ones."""
    height, width = frames.shape[1] // 2 * 2, frames.shape[2] // 2 * 2
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
