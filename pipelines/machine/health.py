"""Checks of the machine for `dreamcade doctor`. Every check yields its problems, each with a remedy."""

from __future__ import annotations

import datetime
import netrc
import os
import platform
import re
import shutil
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from pipelines.machine.provenance import cores, git, installed_version, installed_versions
from pipelines.spelling import PROJECT

GIB = 2**30
DISK = 2 * GIB
"""Disk that is safe for a default run: 100,000 frames take 0.8 GiB; checkpoints, pictures and logs take more."""
MEMORY = 3 * GIB
"""Memory that is safe for a default run on a CPU: the emulators, torch and a medium network take 1.5 GiB."""
SHARED_MEMORY = 1 * GIB
OPEN_FILES = 512
INSTALL = 'pip install -c constraints.txt -e ".[dev]"'


class Finding(NamedTuple):
    """A problem or a note about the machine."""

    wrong: bool
    """True if something will fail or be far too slow, False for a note."""
    text: str
    """One line with the problem and a remedy."""


def missing() -> list[str]:
    """Return the packages that the project needs and that are not installed."""
    names = [re.split(r"[^\w.-]", requirement)[0] for requirement in _needs()[1]]
    return [name for name in names if installed_version(name) is None]


def python(version: str = platform.python_version()) -> Iterator[Finding]:
    """Check the Python version against the versions that the project supports."""
    from packaging.specifiers import SpecifierSet

    supported, _ = _needs()
    if not SpecifierSet(supported).contains(version, prereleases=True):
        yield Finding(True, f"Python is {version}, supported is {supported}: make the environment with another Python")


def packages(installed: Mapping[str, str] | None = None) -> Iterator[Finding]:
    """Check installed versions against the ranges that the project supports."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    held = {
        canonicalize_name(name): version
        for name, version in (installed_versions() if installed is None else installed).items()
    }
    for requirement in map(Requirement, _needs()[1]):
        version = held.get(canonicalize_name(requirement.name))
        if version is None:
            yield Finding(True, f"{requirement.name} is not installed: {INSTALL}")
        elif not requirement.specifier.contains(version, prereleases=True):
            yield Finding(True, f"{requirement.name} is {version}, supported is {requirement.specifier}: {INSTALL}")


def differing(installed: Mapping[str, str] | None = None) -> dict[str, tuple[str, str]]:
    """Return the installed and the tested version of every package that differs from constraints.txt.

    The comparison ignores the local label of a build, such as +cpu in 2.13.0+cpu.
    """
    from packaging.utils import canonicalize_name
    from packaging.version import Version

    path = PROJECT / "constraints.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    pins = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    tested = {canonicalize_name(name): version for name, version in pins}
    found: dict[str, tuple[str, str]] = {}
    for name, version in (installed_versions() if installed is None else installed).items():
        pin = tested.get(canonicalize_name(name))
        if pin is not None and Version(version).public != Version(pin).public:
            found[canonicalize_name(name)] = (version, pin)
    return found


def constraints(installed: Mapping[str, str] | None = None) -> Iterator[Finding]:
    """Check installed versions against constraints.txt."""
    if found := differing(installed):
        shown = ", ".join(f"{name} {version} (tested: {pin})" for name, (version, pin) in list(found.items())[:4])
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        yield Finding(True, f"versions differ from the tested ones: {shown}{more}: {INSTALL}")


def writable(runs: Path) -> Iterator[Finding]:
    """Check that the folder of runs is writable, by writing a temporary file."""
    try:
        tempfile.TemporaryFile(dir=existing(runs)).close()
    except OSError as error:
        yield Finding(
            True, f"{runs} cannot be written, {error.strerror}: change into a folder of yours, or name another"
        )


def disk(runs: Path, free: int | None = None) -> Iterator[Finding]:
    """Check the free disk space in the folder of runs."""
    free = shutil.disk_usage(existing(runs)).free if free is None else free
    if free < DISK:
        yield Finding(
            True,
            f"{free / GIB:.1f} GiB of disk are free for {runs}, {DISK / GIB:.0f} are safe for a default run: "
            "remove old runs, or lower --data.storage.capacity",
        )


def memory(free: int | None) -> Iterator[Finding]:
    """Check the free memory in bytes; None if it is unknown."""
    if free is not None and free < MEMORY:
        yield Finding(
            True,
            f"{free / GIB:.1f} GiB of memory are free, {MEMORY / GIB:.0f} are safe for a default run: "
            "end other programs, or lower --data.sampling.batch_size",
        )


def gpu(present: bool | None = None, usable: bool | None = None) -> Iterator[Finding]:
    """Check that torch can use the machine's GPU."""
    if present is None:
        present = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    if usable is None:
        import torch

        usable = torch.cuda.is_available()
    if present and not usable:
        version = installed_version("torch")
        yield Finding(
            True, f"there is a GPU, but torch {version} cannot use it: install torch with CUDA, or a newer driver"
        )


def emulator(game: str = "pong") -> Iterator[Finding]:
    """Check that the emulator can play a game."""
    import numpy as np

    from datamodules.environments.atari import AtariEnvironments

    try:
        environment = AtariEnvironments(game, 1)
        environment.reset()
        environment.step(np.zeros(1, np.int64))
        environment.close()
    except Exception as error:  # the emulator may raise any exception
        text = " ".join(str(error).split())
        yield Finding(
            True, f"ale-py cannot play {game}, {text}: pip install --force-reinstall -c constraints.txt ale-py"
        )


def weights_and_biases(environment: Mapping[str, str] = os.environ, home: Path | None = None) -> Iterator[Finding]:
    """Check whether W&B has a key for online logging. The key itself is not used."""
    host = re.sub(r"^https?://|[:/].*$", "", environment.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    try:
        known = netrc.netrc(str((home or Path.home()) / ".netrc")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        known = False
    if not known and not environment.get("WANDB_API_KEY"):
        yield Finding(False, "W&B is not logged in: runs are kept offline, the default; `wandb login` to send them")


def open_files(limit: int | None = None) -> Iterator[Finding]:
    """Check the limit of open files per process."""
    if limit is None:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        limit = OPEN_FILES if limit == resource.RLIM_INFINITY else limit
    if limit < OPEN_FILES:
        yield Finding(True, f"a process may open {limit} files, {OPEN_FILES} are safe: ulimit -n 4096")


def shared_memory(folder: Path = Path("/dev/shm"), gpus: int = 0, size: int | None = None) -> Iterator[Finding]:
    """Check the shared memory of the processes of a distributed run, which is wrong only with several GPUs."""
    if size is None and folder.exists():
        size = shutil.disk_usage(folder).total
    if size is not None and size < SHARED_MEMORY:
        yield Finding(
            gpus > 1,
            f"{folder} has {size / GIB:.2f} GiB, runs on several GPUs need {SHARED_MEMORY / GIB:.0f}: "
            "start the container with --shm-size 8g",
        )


def threads(environment: Mapping[str, str] = os.environ, available: int | None = None) -> Iterator[Finding]:
    """Check the environment variables that limit threads or disable compilation."""
    available = cores() if available is None else available
    if environment.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        yield Finding(
            True, "NUMBA_DISABLE_JIT is set: searches run uncompiled, hundreds of times slower: unset NUMBA_DISABLE_JIT"
        )
    for name, what in (("NUMBA_NUM_THREADS", "searches"), ("OMP_NUM_THREADS", "torch"), ("MKL_NUM_THREADS", "torch")):
        value = environment.get(name, "")
        if value and not (value.isdigit() and int(value)):
            yield Finding(True, f"{name} is {value!r}, expected a number of threads: unset {name}")
        elif value and int(value) < available:
            yield Finding(
                name.startswith("NUMBA"), f"{name} is {value}: {what} use no more of {available} cores: unset {name}"
            )


def clock(seconds: float, committed: float | None = None) -> Iterator[Finding]:
    """Check the clock, in seconds since 1970, against the checkout's last commit."""
    if committed is None:
        stamp = git("log", "-1", "--format=%ct")
        committed = float(stamp) if stamp else 0.0
    if seconds < committed:
        said, last = (datetime.datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M") for at in (seconds, committed))
        yield Finding(True, f"the clock says {said}, the checkout's last commit is of {last}: set the clock")


def _needs() -> tuple[str, list[str]]:
    """Return the Python versions and the packages that the checkout requires, or the wheel if there is no checkout."""
    path = PROJECT / "pyproject.toml"
    if path.exists():
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        return project["requires-python"], project["dependencies"]
    wheel = metadata.metadata("dreamcade")
    packages = [package for package in wheel.get_all("Requires-Dist", []) if "extra ==" not in package]
    return wheel["Requires-Python"], packages


def existing(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    folder = folder.absolute()
    return next(parent for parent in (folder, *folder.parents) if parent.exists())
