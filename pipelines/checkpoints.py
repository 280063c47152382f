"""Checkpoints are checked before anything is built on them, and bring along all that building needs."""

from __future__ import annotations

import pickle
import re
import textwrap
import zipfile
from argparse import ArgumentError
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from lightning import LightningDataModule, LightningModule

from datamodules.environments.atari import canonical_game
from modules.errors import UserError
from modules.world_model import Spec
from pipelines.search.search import Search
from pipelines.spelling import explain


def read(path: Path) -> dict[str, Any]:
    """Load a checkpoint that holds tensors and plain data alone.

    Raises:
        UserError: it is not there, cut short, damaged (torch itself compares no checksums), or holds anything else.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise UserError(f"{path} is no whole checkpoint: it was cut short or damaged ({error})") from None
    if damaged is not None:
        raise UserError(f"{path} is damaged: {damaged} does not match its checksum")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next(
            (line.strip() for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line), ""
        )
        raise UserError(f"{path} is refused: it holds more than tensors and plain data. {reason}".strip()) from None
    except (RuntimeError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}") from None


def load(path: str | Path, device: torch.device | str = "cpu") -> tuple[LightningModule, dict[str, Any]]:
    """Build the module that a run trained, from its checkpoint alone.

    Args:
        path: of the checkpoint, which keeps the run's resolved configuration, its world's spec and the weights.
        device: to put the module on.

    Returns:
        The module in evaluation mode, and the checkpoint.

    Raises:
        UserError: as `read`; or it keeps no configuration or spec, its class is gone or takes other arguments, or the
            weights do not fit.
    """
    path = Path(path)
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise UserError(f"unknown device {device}: expected cpu, cuda or cuda:N") from None
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device is {device}, but there are {torch.cuda.device_count()} GPUs: use cpu")
    checkpoint = read(path)
    for key in ("config", "spec", "state_dict"):
        if key not in checkpoint:
            raise UserError(f"{path} keeps no {key}: expected a checkpoint that `dreamcade fit` wrote")
    module = instantiate(LightningModule, checkpoint["config"]["model"], path)
    module.build_from(Spec(**checkpoint["spec"]))
    module.on_load_checkpoint(checkpoint)
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        reason = textwrap.shorten(str(error).partition("\n")[2], 160)
        raise UserError(f"the weights in {path} do not fit {type(module).__name__}: {reason}") from None
    return module.to(device).eval(), checkpoint


def instantiate(base: type, config: dict[str, Any], path: Path) -> Any:
    """Make what the configuration in a checkpoint names: {class_path, init_args} of a subclass of `base`."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "made", fail_untyped=False, required=True)
    try:
        return parser.instantiate(parser.parse_object({"made": config})).made
    except (ArgumentError, ValueError) as error:
        # Complaints are nested: the innermost of those about the first alternative says what is wrong.
        first = re.sub(r"\n\s*- Expected a <class 'NoneType'>.*", "", str(error), flags=re.DOTALL)
        _, problem, reason = re.split(r"\n\s*- ", first)[-1].rpartition("given class_path")
        reason = explain(reason if "Parser key" in reason else problem + reason, ())
        raise UserError(f"{path} cannot be built: {reason}") from None


def search(path: Path, checkpoint: dict[str, Any]) -> Search | None:
    """Return the first search that the callbacks of a checkpoint's run name, or None where they name none."""
    for callback in checkpoint["config"].get("trainer", {}).get("callbacks") or []:
        if named := callback.get("init_args", {}).get("search"):
            made: Search = instantiate(Search, named, path)
            return made
    return None


def world(path: Path, checkpoint: dict[str, Any]) -> Any:
    """Make the datamodule of a checkpoint's run, without a store: it knows which world to play."""
    for key in ("description", "env_steps"):
        if key not in checkpoint:
            raise UserError(f"{path} keeps no {key}: train with the callback pipelines.callbacks.openings.Openings")
    data = instantiate(LightningDataModule, checkpoint["config"]["data"], path)
    data.described = checkpoint["description"]
    return data


def check_world(path: str | Path, checkpoint: dict[str, Any], game: str | None) -> None:
    """Raise a UserError unless a checkpoint is of this game, in any usual spelling; null takes any."""
    world = checkpoint.get("world", "a world without a name")
    with suppress(UserError):  # of another kind of world, under its own name
        game = game and canonical_game(game)
    if game not in (None, world):
        raise UserError(f"{path} is of {world}, not of {game}")
