"""Several processes: every experiment under DDP, and the gradient of two ranks beside that of one."""

import os
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel

from datamodules.replay import ReplayStore
from modules.batch import Batch
from modules.frames.unet import UNet
from modules.world_model import Spec
from tests.pipelines.test_resume import EXPERIMENTS, experiment

PROJECT = Path(__file__).resolve().parents[2]
SPEC = Spec((1, 32, 32), 2, 3)


class KeepWeights(lightning.Callback):
    """Writes the weights of every process."""

    def on_train_end(self, trainer, pl_module):
        folder = Path(trainer.default_root_dir)
        torch.save(pl_module.state_dict(), folder / f"weights{trainer.global_rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_two_processes_end_with_the_same_weights(tmp_path, name):
    """Each plays worlds of its own; nobody waits for the other for ever."""
    command = [
        *(sys.executable, "-m", "pipelines.cli", *experiment(name), "--trainer.max_steps", "5"),
        *("--trainer.devices", "2", "--trainer.strategy", "ddp_find_unused_parameters_true"),
        *("--trainer.default_root_dir", str(tmp_path / "run"), f"--trainer.callbacks+={__name__}.KeepWeights"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    subprocess.run(command, cwd=PROJECT, check=True, timeout=400, env=environment)
    first, second = (torch.load(tmp_path / "run" / f"weights{rank}.pt", weights_only=True) for rank in (0, 1))
    learned = [name for name in first if isinstance(first[name], torch.Tensor) and "running_" not in name]
    assert learned
    if not name.startswith("tabular"):  # a table learns from its own rank's maze alone
        assert all(torch.equal(first[name], second[name]) for name in learned)
    stores = [ReplayStore.open(tmp_path / "run" / "replay" / f"rank{rank}") for rank in (0, 1)]
    assert stores[0].rows == stores[1].rows > 0


def windows(num: int) -> Batch:
    """Windows of one episode each, all rows of which count."""
    source = torch.Generator().manual_seed(1)
    shape = (num, 4)
    return Batch(
        observation=torch.randint(0, 256, (*shape, 2, 32, 32), generator=source, dtype=torch.uint8),
        action=torch.randint(0, 3, shape, generator=source),
        reward=torch.randint(-1, 2, shape, generator=source).float(),
        continuation=torch.ones(shape),
        is_first=torch.zeros(shape, dtype=torch.bool),
        is_last=torch.zeros(shape, dtype=torch.bool),
    )


class Loss(torch.nn.Module):
    """A model's loss as the forward pass that DDP wraps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = UNet(size="debug", unroll=2)
        self.model.build_from(SPEC)

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.model.loss(batch)[0]


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name.removeprefix("module."): p.grad for name, p in module.named_parameters() if p.grad is not None}


def learn(rank: int, folder: str) -> None:
    """One rank's half of the batch."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    module = DistributedDataParallel(Loss(), find_unused_parameters=True)
    module(windows(8)[rank::2]).backward()
    torch.save(gradients(module), f"{folder}/gradients{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_have_the_gradient_of_one_with_the_joined_batch(tmp_path):
    torch.multiprocessing.spawn(learn, (str(tmp_path),), nprocs=2)
    loss = Loss()
    loss(windows(8)).backward()
    alone = gradients(loss)
    largest = max(float(gradient.abs().max()) for gradient in alone.values())
    for rank in (0, 1):
        joined = torch.load(tmp_path / f"gradients{rank}.pt", weights_only=True)
        assert joined.keys() == alone.keys()
        for name, gradient in alone.items():
            assert torch.allclose(joined[name], gradient, atol=1e-5 * largest, rtol=1e-4), name
