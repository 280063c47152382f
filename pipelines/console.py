"""Functions that every command shares: finding configurations, checking options, and ending with an error."""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from modules.errors import UserError, check_range, nearest

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
RUN_FOLDER = "DREAMCADE_RUN"
"""Environment variable with the run's folder, from the first process of a run to the others."""
STOPPED = "stopped; --ckpt_path last resumes the run"
"""Last line of a run that SIGTERM or Ctrl-C ended; the exit code after SIGTERM is 0."""
LARGEST_SEED = 2**32 - 1
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
INTERRUPTED = 130
"""Exit code after Ctrl-C, the shells' convention, so that a script stops as well."""


def fail(message: str) -> NoReturn:
    """Print one line without control characters and exit with code 2."""
    line = re.sub(r"\s+", " ", message).strip()[:2000]
    line = "".join(letter if letter.isprintable() else "?" for letter in line)
    print(f"dreamcade: {line}", file=sys.stderr)
    sys.exit(2)


def expand_home(config: Any) -> Any:
    """Return a parsed configuration in which a leading ~ of every path is expanded to the home folder.

    Args:
        config: parsed command line and YAML files: nested namespaces, lists and plain values.
    """
    from jsonargparse import Namespace  # imported late: `dreamcade doctor` runs without it and reports that

    if isinstance(config, Namespace):
        for key, value in vars(config).items():
            setattr(config, key, expand_home(value))
        return config
    if isinstance(config, dict):
        return {key: expand_home(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return type(config)(expand_home(value) for value in config)
    if isinstance(config, str | Path) and str(config).split("/")[0] == "~":
        return type(config)(os.path.expanduser(config))
    return config


def check_folder(name: str, folder: Path | None) -> None:
    """Raise a UserError unless a folder exists or can be created, and is writable. None is accepted.

    Args:
        name: name of the option, as the user spells it.
        folder: folder that the user gave.
    """
    if folder is None:
        return
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        which = "is" if there == folder.absolute() else f"cannot be made: {there} is"
        raise UserError(f"{name} {folder} {which} a file or a broken link: expected a folder")
    try:
        os.rmdir(tempfile.mkdtemp(dir=there))  # permissions alone do not tell: /proc takes no folders even from root
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        raise UserError(
            f"{name} {folder} cannot be written to: {there} takes no files ({error.strerror}), choose another folder"
        ) from None


def check_seed(name: str, seed: int | None) -> None:
    """Raise a UserError unless every random generator accepts the seed. None is accepted."""
    check_range(name, seed, 0, LARGEST_SEED)


def find_configs(arguments: Sequence[str]) -> list[str]:
    """Return a command line in which every `--config` names an existing file.

    A file of configs/size/ changes an experiment. The experiment is inserted before it, unless it is there already.
    """
    found: list[str] = []
    for before, argument in pairwise(["", *arguments]):
        word = find_config(before, argument)
        option, _, value = word.partition("=") if word.startswith(("-c=", "--config=")) else (before, "", word)
        experiment = _experiment(Path(value)) if option in ("-c", "--config") else None
        given = [Path(each.partition("=")[2] or each).name for each in found]
        if experiment is not None and experiment.name not in given:
            found += [str(experiment), option] if option == before else [f"{option}={experiment}"]
        found.append(word)
    return found


def run_name(configs: Iterable[object]) -> str:
    """Return the name of the runs of some configurations, such as unet-gpu.

    An experiment is left out where a size of it follows, whose name begins with the experiment's.
    """
    paths = [Path(str(path)) for path in configs]
    named = {experiment.stem for path in paths if (experiment := _experiment(path)) is not None}
    return "-".join(path.stem for path in paths if path.stem not in named)


def _experiment(path: Path) -> Path | None:
    """Return the experiment that a file of configs/size/ changes; None for any other file."""
    experiment = CONFIGS / "experiment" / f"{path.stem.rpartition('_')[0]}.yaml"
    return experiment if path.parent.name == "size" and experiment.exists() else None


def find_config(before: str, argument: str) -> str:
    """Return an argument of the command line. The value of `--config` becomes the path of an existing file.

    The project's own files are found from any folder, by path or name: configs/quickstart.yaml, quickstart, unet.

    Args:
        before: argument before it, which may be `--config` or `-c`.
        argument: argument itself, which may be `--config=FILE`.
    """
    argument = argument if "=" in argument else os.path.expanduser(argument)
    option, _, value = argument.partition("=")
    if option in ("-c", "--config") and value:
        return f"{option}={find_config(option, value)}"
    if before not in ("-c", "--config"):
        return argument
    if Path(argument).exists():
        _check_config(Path(argument))
        return argument
    name = argument.removeprefix("configs/").removesuffix(".yaml") + ".yaml"
    folders = (CONFIGS, CONFIGS / "experiment", CONFIGS / "size", CONFIGS / "trainer")
    found = [folder / name for folder in folders if (folder / name).exists()]
    if not found:
        known = {path.stem: path.relative_to(CONFIGS.parent) for path in sorted(CONFIGS.rglob("*.yaml"))}
        fail(f"there is no config {argument}, the nearest is {known[nearest(Path(name).stem, known)]}")
    return str(found[0])


def _check_config(path: Path) -> None:
    """Fail if a file holds no keys, because the parser's error would not name the file."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # the parser reports the error later
        return
    if not isinstance(content, dict):
        what = "is empty" if content is None else f"holds a {type(content).__name__}"
        fail(f"{path} {what}: a configuration has keys, such as trainer: {{max_steps: 1000}}")
