"""Several processes: every experiment under DDP, and the gradient of two ranks beside that of one."""

import json
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel

from datamodules.replay.store import ReplayStore
from modules.batch import Batch
from modules.frames.unet import UNet, Unroll
from modules.world_model import Spec
from pipelines.runs import checkpoints
from pipelines.runs.checkpoint_files import LAST
from tests.runs.ranks import DDP, PROJECT, environment, torchrun
from tests.runs.test_resume import EXPERIMENTS, experiment

QUICK = ["ensemble__mbpo"]
TABLE = "tabular__dyna_q"
"""Which no gradient changes: several processes are refused."""
CASES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in EXPERIMENTS if name != TABLE]
SPEC = Spec((1, 32, 32), 2, 3)


class KeepWeights(lightning.Callback):
    """Writes the weights of every process."""

    def on_train_end(self, trainer, pl_module):
        folder = Path(trainer.default_root_dir)
        torch.save(pl_module.state_dict(), folder / f"weights{trainer.global_rank}.pt")


@pytest.mark.parametrize("name", CASES)
def test_two_processes_end_with_the_same_weights(tmp_path, name):
    """Each plays worlds of its own; nobody waits for the other for ever."""
    torchrun(
        *("-m", "pipelines.cli", *experiment(name), *DDP, "--trainer.max_steps", "5"),
        *("--trainer.default_root_dir", tmp_path / "run", f"--trainer.callbacks+={__name__}.KeepWeights"),
    )
    first, second = (torch.load(tmp_path / "run" / f"weights{rank}.pt", weights_only=True) for rank in (0, 1))
    learned = [name for name in first if isinstance(first[name], torch.Tensor) and "running_" not in name]
    assert learned
    assert all(torch.equal(first[name], second[name]) for name in learned)
    stores = [ReplayStore.open(tmp_path / "run" / "replay" / f"rank{rank}") for rank in (0, 1)]
    assert stores[0].rows == stores[1].rows > 0


@pytest.mark.slow
def test_a_table_takes_one_process(tmp_path):
    command = [sys.executable, "-m", "pipelines.cli", *experiment(TABLE), *DDP]
    done = subprocess.run(
        [*command, "--trainer.default_root_dir", str(tmp_path / "run")],
        cwd=PROJECT,
        timeout=200,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "this run has none: set trainer.devices to 1" in done.stderr
    assert "Traceback" not in done.stderr


def test_torchrun_needs_a_folder(run, monkeypatch):
    """Each process would count the runs that there are by itself."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "4")
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = run(*experiment("dqn_cartpole"), *DDP)
    assert outcome.refused("torchrun", "--trainer.default_root_dir")


@pytest.mark.slow
def test_processes_that_were_stopped_before_their_first_checkpoint_start_anew(tmp_path):
    """The second one looks when the first has taken the old store away."""
    old = tmp_path / "run" / "replay" / "rank0"
    old.mkdir(parents=True)
    (old / "meta.json").write_text("old")
    command = [
        *(sys.executable, "-m", "pipelines.cli", *experiment("dqn_cartpole"), *DDP, "--trainer.max_steps", "2"),
        *("--trainer.default_root_dir", str(tmp_path / "run"), "--ckpt_path", "last"),
    ]
    done = subprocess.run(command, cwd=PROJECT, timeout=200, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("stopped before its first checkpoint") == 1
    assert checkpoints.read(tmp_path / "run" / "checkpoints" / LAST)["global_step"] == 2


@pytest.mark.slow
def test_a_job_of_slurm_begins_and_goes_on_by_the_same_command(tmp_path):
    """As srun starts it, and again when the job was put back into the queue."""
    arguments = [*experiment("dqn_cartpole"), *DDP, "--trainer.default_root_dir", str(tmp_path / "run")]
    lines = [shlex.join([*arguments, "--ckpt_path", "last", "--trainer.max_steps", str(steps)]) for steps in (2, 4)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {
        "SLURM_JOB_ID": "4",
        "SLURM_JOB_NAME": "dreamcade",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    tasks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.runs.ranks", *lines],
            cwd=PROJECT,
            env=environment() | job | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    printed = [task.communicate(timeout=200)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], printed
    assert ["a new run begins" in text for text in printed] == [True, False]
    assert checkpoints.read(tmp_path / "run" / "checkpoints" / LAST)["global_step"] == 4
    assert len(json.loads((tmp_path / "run" / "reproduce.json").read_text())) == 2
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
        self.model = UNet(size="debug", unroll=Unroll(2))
        self.model.build_from(SPEC)

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.model.loss(batch).total


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
