"""Rows of DotWorld, and networks small enough to learn it in seconds."""

import numpy as np
import torch

from modules.batch import Batch
from modules.latents.mdn_rnn import MDNRNN
from modules.latents.vae import VAE
from modules.optimization import Optimization
from tests.fakes import SPEC, play

SINGLE = SPEC._replace(frame_stack=1)


def windows(path, num_windows=16, length=8, rows=200, seed=0) -> Batch:
    """Windows (num_windows, length) of random play, single frames."""
    store = play(path, rows)
    batch = store.sample(np.random.default_rng(seed), num_windows, length)
    store.close()
    return batch


def vae(**options) -> VAE:
    torch.manual_seed(0)
    model = VAE(**{"latent_size": 6, "channels": (8, 16), "optimization": Optimization(2e-3)} | options)
    model.build_from(SINGLE)
    return model


def mdn_rnn(of_vae=None, **options) -> MDNRNN:
    torch.manual_seed(0)
    small = {"latent_size": 6, "channels": (8, 16), "optimization": Optimization(2e-3)}
    model = MDNRNN(VAE(**small | (of_vae or {})), **options)
    model.build_from(SINGLE)
    return model


def learn(model, batches, updates) -> dict[str, torch.Tensor]:
    """Train as the Trainer does, and return the last parts."""
    optimizer = torch.optim.AdamW(model.parameter_groups())
    for update in range(updates):
        loss, parts, *_ = model.loss(batches[update % len(batches)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.updated()
    return parts
