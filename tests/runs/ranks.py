"""Commands of dreamcade on two processes; as a module, several of them one after the other."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
TWO = ("--trainer.devices", "2", "--trainer.accelerator", "cpu", "--trainer.precision", "32-true")
DDP = (*TWO, "--trainer.strategy", "ddp_find_unused_parameters_true")


def environment() -> dict[str, str]:
    """What two processes on two cores need, and nothing of a run of this one."""
    own = {name: value for name, value in os.environ.items() if name not in ("DREAMCADE_RUN", "PL_GLOBAL_SEED")}
    return own | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "PYTHONPATH": str(PROJECT)}


def torchrun(*command: object, cwd: Path = PROJECT) -> None:
    """Start both ranks at once; whoever hangs is ended."""
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = subprocess.Popen(
        [*launch, *map(str, command)], cwd=cwd, env=environment(), stderr=subprocess.PIPE, text=True
    )
    try:
        _, printed = process.communicate(timeout=400)
    finally:
        process.terminate()  # torchrun ends its ranks
        process.wait()
    assert process.returncode == 0, printed


if __name__ == "__main__":
    from pipelines import cli

    for line in sys.argv[1:]:
        cli.main(shlex.split(line))
