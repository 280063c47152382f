"""FSDP2: what shares learn is what DDP learns, and checkpoints are those of one process."""

import shlex
from pathlib import Path
from types import SimpleNamespace

import lightning
import pytest
import torch

from modules.errors import UserError
from pipelines.callbacks.learning.pretrained import Pretrained
from pipelines.console import CONFIGS
from pipelines.runs import checkpoints
from pipelines.runs.checkpoint_files import LAST
from pipelines.training.sharded import FullySharded
from tests.runs.ranks import DDP, TWO, torchrun
from tests.runs.test_resume import experiment

FSDP = ("--config", str(CONFIGS / "trainer" / "fsdp.yaml"), *TWO)
CASES = {
    "ensemble__mbpo": [],  # plays and evaluates with its weights, and a refit changes them by hand
    "dqn_cartpole": ["--model.policy.target_network.every", "2"],
    "unet": ["--model.optimization.decay", "false"],  # weights in channels_last, and one that is a scalar
}


class CountShares(lightning.Callback):
    """Writes down how much of the optimizer's state this rank has."""

    def on_train_end(self, trainer, pl_module):
        (optimizer,) = trainer.optimizers
        own = sum(state["exp_avg"].to_local().numel() for state in optimizer.state.values())
        Path(trainer.default_root_dir, f"shares{trainer.global_rank}.txt").write_text(str(own))


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one.double(), other.double(), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_shares_learn_what_ddp_learns(run, tmp_path, name):
    """Though they were stopped, went on by DDP, and were stopped again."""
    arguments = [*experiment(name), *CASES[name], "--trainer.default_root_dir"]
    counted = f"--trainer.callbacks+={__name__}.CountShares"
    commands = [
        [*arguments, str(tmp_path / "ddp"), *DDP, "--trainer.max_steps", "6"],
        [*arguments, str(tmp_path / "fsdp"), *FSDP, "--trainer.max_steps", "2"],
        [*arguments, str(tmp_path / "fsdp"), *DDP, "--trainer.max_steps", "3", "--ckpt_path", "last"],
        [*arguments, str(tmp_path / "fsdp"), *FSDP, "--trainer.max_steps", "6", "--ckpt_path", "last", counted],
    ]
    torchrun("-m", "tests.runs.ranks", *map(shlex.join, commands))
    one, other = (checkpoints.read(tmp_path / kind / "checkpoints" / LAST) for kind in ("ddp", "fsdp"))
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for key, value in one["state_dict"].items():
        if isinstance(value, torch.Tensor):
            assert type(other["state_dict"][key]) is torch.Tensor
            assert value.shape == other["state_dict"][key].shape, key
            assert close(value, other["state_dict"][key]), key
        else:
            assert value == other["state_dict"][key], key
    (one,), (other,) = one["optimizer_states"], other["optimizer_states"]
    assert one["param_groups"] == other["param_groups"]
    assert one["state"].keys() == other["state"].keys()
    assert all(close(one["state"][i][key], other["state"][i][key]) for i in one["state"] for key in one["state"][i])
    total = sum(state["exp_avg"].numel() for state in one["state"].values())
    shares = [int((tmp_path / "fsdp" / f"shares{rank}.txt").read_text()) for rank in (0, 1)]
    assert sum(shares) == total
    assert max(shares) < 0.6 * total
    module, _ = checkpoints.load(tmp_path / "fsdp" / "checkpoints" / LAST)
    assert type(module).__name__ in ("Agent", "UNet")
    if name != "unet":
        path = tmp_path / "fsdp" / "checkpoints" / LAST
        assert run("evaluate", path, "--episodes", 1, "--max_steps", 10).code == 0


@pytest.mark.parametrize(
    ("accumulated", "callbacks", "words"),
    [(2, [], "accumulate_grad_batches"), (1, [Pretrained("last.ckpt")], "--init_from")],
)
def test_what_it_refuses(accumulated, callbacks, words):
    with pytest.raises(UserError, match=words):
        FullySharded().setup(SimpleNamespace(accumulate_grad_batches=accumulated, callbacks=callbacks))
