"""What every command shares: where the configurations are, and how a command ends."""

from __future__ import annotations

import errno
import re
import sys
from pathlib import Path
from typing import NoReturn

from modules.errors import nearest

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
RUN_FOLDER = "DREAMCADE_RUN"
"""Environment variable by which the first process of a run tells the others its folder."""
STOPPED = "stopped as told; --ckpt_path last goes on from here"
"""What a run says last where SIGTERM ended it, with exit code 0, or Ctrl-C."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: a script does not go on."""


def fail(message: str) -> NoReturn:
    """Print one line and exit with code 2; what a file says in it cannot steer the terminal."""
    line = re.sub(r"\s+", " ", message).strip()[:2000]
    line = "".join(letter if letter.isprintable() else "?" for letter in line)
    print(f"dreamcade: {line}", file=sys.stderr)
    sys.exit(2)


def find_config(before: str, argument: str) -> str:
    """Let `--config` find the project's own files from anywhere: configs/quickstart.yaml, quickstart, unet."""
    option, _, value = argument.partition("=")
    if option in ("-c", "--config") and value:
        return f"{option}={find_config(option, value)}"
    if before not in ("-c", "--config") or Path(argument).exists():
        return argument
    name = argument.removeprefix("configs/").removesuffix(".yaml") + ".yaml"
    folders = (CONFIGS, CONFIGS / "experiment", CONFIGS / "trainer")
    found = [folder / name for folder in folders if (folder / name).exists()]
    if not found:
        names = [str(path.relative_to(CONFIGS.parent)) for path in sorted(CONFIGS.rglob("*.yaml"))]
        fail(f"there is no config {argument}, the nearest is {nearest(f'configs/{name}', names)}")
    return str(found[0])
