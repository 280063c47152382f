"""The console command `dreamcade`."""

from __future__ import annotations

import importlib
import keyword
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence

from modules.errors import UserError, nearest
from pipelines.console import INTERRUPTED, NO_ROOM, STOPPED, fail, find_configs

TRAINER_COMMANDS = {
    "fit": "train a model, or resume its training",
    "validate": "measure the world model of a checkpoint on validation episodes",
    "test": "measure as validate does, and log under test/ instead of validation/",
    "predict": "write the dreams of a checkpoint as arrays",
}
COMMANDS = {
    "collect": "play a game at random and record a replay store",
    "evaluate": "play whole episodes with the policy of a checkpoint",
    "plan": "play an Atari game by a search in the emulator itself",
    "search": "search one move with a checkpoint, and draw the tree",
    "report": "compare evaluated runs: curves, intervals, published scores",
    "export": "write a replay store as a Minari dataset",
    "import": "write a local Minari dataset as a replay store",
    "doctor": "check this machine, and print a remedy for every problem",
    "sweep": "search hyperparameters with many runs of one W&B sweep file",
}
HELP = f"""usage: dreamcade COMMAND [--config FILE] [--KEY.NAME VALUE ...]

Model-based reinforcement learning for discrete actions: learn a world model, then dream in it.

commands:
{chr(10).join(f"  {name:<10}{text}" for name, text in (TRAINER_COMMANDS | COMMANDS).items())}

examples:
  dreamcade fit --config configs/quickstart.yaml                   train a world model of Pong in minutes
  dreamcade fit --config configs/quickstart.yaml --data.game Breakout
  dreamcade fit --config configs/quickstart.yaml --ckpt_path last  resume the newest run of this config
  dreamcade fit --config configs/experiment/ensemble__mbpo.yaml    train a policy in dreams alone
  dreamcade report runs/ensemble__mbpo runs/dqn_cartpole           compare the evaluations of two runs
  dreamcade COMMAND --help                                         list the options of a command
  dreamcade fit --model.help modules.latents.muzero.MuZero         list the arguments of a model
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. A user's mistake ends it with one line on stderr and exit code 2."""
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
                fail(f"no space left on disk: {cause}; everything that was written before is intact")
            if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError":  # torch's, of a GPU
                fail(f"not enough memory: {cause}; `dreamcade doctor` lists what needs it")
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    # The argument parser wraps the exceptions of constructors.
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _train(command: str, arguments: list[str]) -> None:
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from pipelines.training.callbacks import as_changes
    from pipelines.training.cli import TrainerCLI

    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")  # its generator is restored
    warnings.filterwarnings("ignore", message=".*Total length of .* across ranks is zero.*")  # no validation
    warnings.filterwarnings("ignore", message=".*training_step. returned .None.*")  # tables need no optimizer
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    arguments = as_changes(find_configs(arguments))
    sys.argv = [sys.argv[0], command, *arguments]  # Lightning starts other ranks with these
    try:
        TrainerCLI()
    except MisconfigurationException as error:
        fail(str(error))
    except SIGTERMException:
        print(f"dreamcade: {STOPPED}", file=sys.stderr)
        sys.exit(0)


if __name__ == "__main__":
    main()
