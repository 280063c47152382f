"""Time per update of the VAE and of the MDN-RNN, beside a plain PyTorch loop of the same shapes, and under the Trainer.

    python benchmarks/world_models_step.py [--threads 1]

The public ports' shapes: frames of 64 x 64 RGB, z of 32, an LSTM of 256, 5 mixtures, windows of 32 rows, 16 in a batch;
the VAE learns from 100 frames. The plain loop is written here, of torch.nn and torch.distributions alone: the encoder
without gradients, one LSTM over the windows, a mixture for each number of z, a reward and an end head, the summed loss,
clipping, AdamW. Both sides are given the same batches, which random numbers fill: nothing is sampled from a store, and
no window crosses an end. The sides take turns, block by block, in one run; figures are medians over the blocks.

The Trainer's overhead is that of the real run: the MDN-RNN with its VAE under configs/base.yaml's callbacks, against a
loop that does nothing but train on batches of the same store, again in turns.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import report
import smoke
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, Normal
from trainer_overhead import fill, race

from datamodules.atari import AtariReplay
from datamodules.settings import Sampling
from modules.batch import Batch
from modules.latents.mdn_rnn import MDNRNN
from modules.latents.vae import VAE
from modules.world_model import Spec

WINDOWS, LENGTH, FRAMES, ACTIONS, LATENT, HIDDEN, MIXTURES = 16, 32, 100, 6, 32, 256, 5
SPEC = Spec((3, 64, 64), 1, ACTIONS)


class PlainVAE(nn.Module):
    """The convolutions of both public ports."""

    def __init__(self) -> None:
        super().__init__()
        widths, kernels = (3, 32, 64, 128, 256), (5, 5, 6, 6)
        down = [layer for a, b in pairwise(widths) for layer in (nn.Conv2d(a, b, 4, 2), nn.ReLU())]
        self.down = nn.Sequential(*down, nn.Flatten())
        self.mean, self.log_variance = nn.Linear(1024, LATENT), nn.Linear(1024, LATENT)
        back = (1024, 128, 64, 32, 3)
        up = [
            layer
            for (a, b), k in zip(pairwise(back), kernels, strict=True)
            for layer in (nn.ConvTranspose2d(a, b, k, 2), nn.ReLU())
        ]
        self.up = nn.Sequential(nn.Linear(LATENT, 1024), nn.Unflatten(1, (1024, 1, 1)), *up[:-1], nn.Sigmoid())

    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.down(frames)
        return self.mean(seen), self.log_variance(seen)

    def loss(self, frames: Tensor) -> Tensor:
        mean, log_variance = self.encode(frames)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1)
        return (self.up(z) - frames).square().sum(dim=(1, 2, 3)).mean() + kl.clamp(min=0.5 * LATENT).mean()


class PlainMDNRNN(nn.Module):
    """An LSTM and its heads."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(LATENT + ACTIONS, HIDDEN, batch_first=True)
        self.mixture = nn.Linear(HIDDEN, 3 * LATENT * MIXTURES)
        self.reward, self.end = nn.Linear(HIDDEN, 1), nn.Linear(HIDDEN, 1)

    def loss(self, z: Tensor, batch: Batch) -> Tensor:
        action = F.one_hot(batch.action[:, :-1], ACTIONS).float()
        h, _ = self.lstm(torch.cat([z[:, :-1], action], dim=2))
        logits, mean, log_std = self.mixture(h).unflatten(2, (3, LATENT, MIXTURES)).unbind(2)
        known = MixtureSameFamily(
            Categorical(logits=logits, validate_args=False),
            Normal(mean, log_std.exp(), validate_args=False),
            validate_args=False,
        )
        reward = F.mse_loss(self.reward(h)[..., 0], batch.reward[:, :-1])
        end = F.binary_cross_entropy_with_logits(self.end(h)[..., 0], 1 - batch.continuation[:, :-1])
        return -known.log_prob(z[:, 1:]).mean() + reward + end


def random_batch(windows: int, length: int) -> Batch:
    """Return windows of noise without ends."""
    never = torch.zeros(windows, length, dtype=torch.bool)
    return Batch(
        action=torch.randint(ACTIONS, (windows, length)),
        reward=torch.randint(-1, 2, (windows, length)).float(),
        continuation=torch.ones(windows, length),
        is_first=never,
        is_last=never,
        observation=torch.randint(256, (windows, length, 3, 64, 64), dtype=torch.uint8),
    )


def updater(parameters: list[nn.Parameter], loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Return one update of AdamW with clipping."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)

    def update() -> None:
        value = loss()
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return update


def sides() -> dict[str, tuple[Callable[[], None], Callable[[], None]]]:
    """Return our update and the plain one, of each part."""
    frames, windows = random_batch(FRAMES // 2, 2), random_batch(WINDOWS, LENGTH)
    assert frames.observation is not None
    assert windows.observation is not None
    vae, model = VAE(), MDNRNN(VAE())
    vae.build_from(SPEC)
    model.build_from(SPEC)
    plain_vae, plain_rnn = PlainVAE(), PlainMDNRNN()

    def plain_memory_loss() -> Tensor:
        with torch.no_grad():
            mean, log_variance = plain_vae.encode(windows.observation.flatten(0, 1).float() / 255)  # type: ignore[union-attr]
            z = (mean + (0.5 * log_variance).exp() * torch.randn_like(mean)).unflatten(0, windows.shape)
        return plain_rnn.loss(z, windows)

    def plain_vae_loss() -> Tensor:
        return plain_vae.loss(frames.observation.flatten(0, 1).float() / 255)  # type: ignore[union-attr]

    return {
        "vae": (
            updater(list(vae.parameters()), lambda: vae.loss(frames).total),
            updater(list(plain_vae.parameters()), plain_vae_loss),
        ),
        "mdn_rnn": (
            updater(list(model.memory.parameters()), lambda: model.memory_loss(windows)[0]),
            updater(list(plain_rnn.parameters()), plain_memory_loss),
        ),
    }


def in_turns(ours: Callable[[], None], plain: Callable[[], None], blocks: int, updates: int) -> dict[str, float]:
    """Return the median ms of an update of both sides, and the median of their ratio in a block."""
    times = []
    for _ in range(blocks + 1):
        row = []
        for update in (ours, plain):
            begin = time.perf_counter()
            for _ in range(updates):
                update()
            row.append(1e3 * (time.perf_counter() - begin) / updates)
        times.append(row)
    found = np.array(times[1:])
    return {
        "ms": round(float(np.median(found[:, 0])), 2),
        "plain_ms": round(float(np.median(found[:, 1])), 2),
        "speed_of_plain": round(float(np.median(found[:, 1] / found[:, 0])), 3),
    }


def overhead(store: Path, folder: Path, blocks: int, block: int) -> dict[str, float]:
    """Train the MDN-RNN and its VAE with and without the Trainer, in turns."""
    lightning.seed_everything(0, verbose=False)
    networks = [MDNRNN(VAE(num_frames=8)) for _ in range(2)]
    data = [AtariReplay(path=store, frame_stack=1, sampling=Sampling(4, LENGTH)) for _ in range(2)]
    loop, slow = race(networks, data, folder, 1.0, blocks, block)
    ratio, cpu_ratio = np.median(loop / slow, axis=0)
    return {
        "bare_ms": round(float(np.median(loop[:, 0])), 2),
        "trainer_ms": round(float(np.median(slow[:, 0])), 2),
        "trainer_vs_bare_loop": round(float(ratio), 3),
        "trainer_vs_bare_loop_cpu_time": round(float(cpu_ratio), 3),
    }


def main() -> None:
    parser = smoke.Parser(__doc__)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--blocks", type=int, default=15, smoke=1, help="blocks of each side")
    parser.add_argument("--updates", type=int, default=3, smoke=1, help="updates of a block beside the plain loop")
    parser.add_argument("--block", type=int, default=50, smoke=2, help="updates of a block under the Trainer")
    parser.add_argument("--rows", type=int, default=2000, smoke=400, help="rows of the store")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    figures: dict[str, Any] = {name: in_turns(*pair, options.blocks, options.updates) for name, pair in sides().items()}
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder) / "store", options.rows, size=(64, 64), color="rgb")
        blocks = max(min(3, options.blocks), options.blocks // 3)
        figures["trainer"] = overhead(Path(folder) / "store", Path(folder) / "run", blocks, options.block)
    shapes = {"windows": WINDOWS, "rows": LENGTH, "frames_of_the_vae": FRAMES}
    setting = {"threads": options.threads, "blocks": options.blocks, **shapes}
    report.write("world_models_step", {**setting, **figures}, options)


if __name__ == "__main__":
    main()
