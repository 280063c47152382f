"""The console command `dreamcade`."""

from __future__ import annotations

import errno
import importlib
import keyword
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from modules.errors import UserError
from pipelines.spelling import nearest

CONFIGS = Path(__file__).resolve().parent.parent / "configs"

TRAINER_COMMANDS = {
    "fit": "train a model",
    "validate": "measure a checkpoint on the held-out episodes of its run",
    "test": "the same, under the name that keeps it apart",
    "predict": "write the dreams of a checkpoint as arrays",
}
COMMANDS = {
    "collect": "play a game at random and record a store",
    "evaluate": "play whole episodes with the policy of a checkpoint",
    "plan": "play a game by planning in the emulator itself",
    "search": "plan one move of a checkpoint, and draw the tree",
    "report": "compare evaluated runs: curves, intervals, published scores",
    "export": "write a store as a Minari dataset",
    "import": "make a store of a local Minari dataset",
    "doctor": "look for what would go wrong, before it does",
    "sweep": "search hyperparameters: many runs of one W&B sweep file",
}
RUN_FOLDER = "DREAMCADE_RUN"
"""Environment variable by which the first process of a run tells the others its folder."""
STOPPED = "stopped as told; --ckpt_path last goes on from here"
"""What a run says last where SIGTERM ended it, with exit code 0, or Ctrl-C."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: a script does not go on."""

HELP = f"""usage: dreamcade COMMAND [--config FILE] [--KEY.NAME VALUE ...]

Model-based reinforcement learning for discrete actions: learn a world model, then dream in it.

commands:
{chr(10).join(f"  {name:<10}{text}" for name, text in (TRAINER_COMMANDS | COMMANDS).items())}

  dreamcade fit --config configs/quickstart.yaml     a world model of Pong in minutes
  dreamcade fit --config configs/quickstart.yaml --data.game Breakout
  dreamcade fit --config configs/quickstart.yaml --ckpt_path last     go on where it stopped
  dreamcade fit --config configs/experiment/ensemble__mbpo.yaml      a policy that learns from dreams alone
  dreamcade report runs/ensemble__mbpo runs/dqn_cartpole              compare what they play
  dreamcade COMMAND --help     all that can be set
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a user's mistake is one line on stderr and exit code 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP)
        return
    command, *rest = arguments
    known = [*TRAINER_COMMANDS, *COMMANDS]
    if command not in known:
        fail(
            f"unknown command {command!r}: expected one of {', '.join(known)}, the nearest is {nearest(command, known)}"
        )
    try:
        if command in COMMANDS:
            module = f"{command}_" if keyword.iskeyword(command) else command
            importlib.import_module(f"pipelines.commands.{module}").main(rest)
        else:
            _train(command, rest)
    except KeyboardInterrupt as stop:
        print(f"dreamcade: {STOPPED if stop.__cause__ else 'interrupted'}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        for cause in _causes(error):
            if isinstance(cause, UserError):
                fail(str(cause))
            if isinstance(cause, OSError) and cause.errno in NO_ROOM:
                fail(f"no room left on disk: {cause}; what was written before is whole")
        raise


def fail(message: str) -> NoReturn:
    """Print one line and exit with code 2; what a file says in it cannot steer the terminal."""
    line = re.sub(r"\s+", " ", message).strip()[:2000]
    line = "".join(letter if letter.isprintable() else "?" for letter in line)
    print(f"dreamcade: {line}", file=sys.stderr)
    sys.exit(2)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    # The argument parser wraps what a constructor raises.
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _train(command: str, arguments: list[str]) -> None:
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from pipelines.trainer_cli import TrainerCLI

    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")  # its generator is restored
    warnings.filterwarnings("ignore", message=".*Total length of .* across ranks is zero.*")  # nothing is held out
    warnings.filterwarnings("ignore", message=".*training_step. returned .None.*")  # tables learn by themselves
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    arguments = [find_config(before, argument) for before, argument in pairwise([command, *arguments])]
    sys.argv = [sys.argv[0], command, *arguments]  # processes of other ranks are started with it
    try:
        TrainerCLI()
    except MisconfigurationException as error:
        fail(str(error))
    except SIGTERMException:
        print(f"dreamcade: {STOPPED}", file=sys.stderr)
        sys.exit(0)


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


if __name__ == "__main__":
    main()
