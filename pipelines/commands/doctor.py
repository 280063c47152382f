"""Checks the machine for problems before they occur: `dreamcade doctor`."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pipelines.console import fail
from pipelines.machine import health
from pipelines.machine.provenance import changed_files, cores, cpu_model, git, installed_version

SHOWN = ("dreamcade", "torch", "lightning", "numpy", "numba", "ale-py", "gymnasium", "minari", "open_spiel", "wandb")


def doctor(runs: Path = Path("runs")) -> int:
    """Print versions, devices, free memory and disk, and one line with a remedy for every problem.

    Args:
        runs: folder that new runs are written to.

    Returns:
        0 if nothing is wrong, else 1.
    """
    import torch

    from pipelines.machine.memory import free_bytes

    free = free_bytes()
    gpus = torch.cuda.device_count()
    differing = health.differing()
    rows = [("python", sys.version.split()[0])]
    for name in SHOWN:
        _, tested = differing.get(name.replace("_", "-"), (None, None))
        version = installed_version(name) or "not installed"
        rows.append((name, f"{version} (tested: {tested})" if tested else version))
    commit = git("rev-parse", "--short=12", "HEAD") or "none: this is no git checkout"
    if changed := changed_files():
        commit += f", {len(changed)} files changed"
    numba_threads = os.environ.get("NUMBA_NUM_THREADS") or cores()
    rows += [
        ("commit", commit),
        ("processor", f"{cpu_model()}, {cores()} cores, {numba_threads} numba threads"),
        *((f"GPU {index}", _gpu(index)) for index in range(gpus)),
        ("memory", "unknown" if free is None else f"{free / health.GIB:.1f} GiB free"),
        ("disk", f"{shutil.disk_usage(health.existing(runs)).free / health.GIB:.1f} GiB free for {runs}"),
    ]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")
    findings = [
        *health.python(),
        *health.packages(),
        *health.constraints(),
        *health.writable(runs),
        *health.disk(runs),
        *health.memory(free),
        *health.gpu(),
        *health.emulator(),
        *health.weights_and_biases(),
        *health.open_files(),
        *health.shared_memory(gpus=gpus),
        *health.threads(),
        *health.clock(time.time()),
    ]
    print()
    for finding in sorted(findings, reverse=True):
        print(f"{'wrong' if finding.wrong else 'note'}: {finding.text}")
    wrong = sum(finding.wrong for finding in findings)
    print(f"{wrong} {'thing is' if wrong == 1 else 'things are'} wrong" if wrong else "nothing is wrong")
    return int(wrong > 0)


def _gpu(index: int) -> str:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    name = torch.cuda.get_device_name(index)
    return f"{name}, {free / health.GIB:.1f} of {total / health.GIB:.1f} GiB free"


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and check the machine."""
    if missing := health.missing():
        fail(f"not installed: {', '.join(missing)}; expected an environment made by {health.INSTALL}")
    from pipelines.commands.parser import Parser

    parser = Parser(prog="dreamcade doctor", description="Check whether this machine can run dreamcade.")
    parser.add_function_arguments(doctor)
    sys.exit(doctor(**vars(parser.instantiate(parser.parse_args(list(arguments))))))
