"""Builds a run's module from its checkpoint, which may come from an untrusted source.

A checkpoint names classes and worlds, which are imported to build the module. Only names of dreamcade and of packages
in the environment variable DREAMCADE_TRUST are imported.
"""

from __future__ import annotations

import json
import os
import re
import textwrap
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, set_parsing_settings
from jsonargparse._common import parsing_settings
from lightning import LightningDataModule

from datamodules.environments.atari import canonical_game
from datamodules.replay.format import difference
from modules.errors import UserError, brief
from modules.learner import Learner, Spec
from pipelines.acting.play import Play, PolicyPlay, SearchPlay
from pipelines.runs.checkpoint_files import read
from pipelines.spelling import explain

OWN = ("modules", "datamodules", "pipelines")
TRUST = "DREAMCADE_TRUST"
EVALUATIONS = ("Evaluate", "SearchEvaluation")
"""Names of the callbacks that evaluate an actor."""


def load(path: str | Path, device: torch.device | str = "cpu") -> tuple[Learner, dict[str, Any]]:
    """Build the module that a run trained from its checkpoint.

    Args:
        path: path of the checkpoint, which stores the run's resolved configuration, its world's spec and the weights.
        device: device to put the module on.

    Returns:
        The module in evaluation mode, and the checkpoint.

    Raises:
        UserError: `checkpoint_files.read` fails; the checkpoint has no configuration or spec; its class does not exist,
            is not trusted or takes other arguments; or the weights do not fit.
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
    with blaming(path):
        with torch.device("meta"):  # takes no memory: a module that does not fit may have any size
            _check_shapes(_build(checkpoint, path), checkpoint["state_dict"], path)
        module = _build(checkpoint, path)
        module.on_load_checkpoint(checkpoint)
        try:
            module.load_state_dict(checkpoint["state_dict"])
        except RuntimeError as error:
            reason = textwrap.shorten(str(error).partition("\n")[2], 160)
            raise UserError(f"the weights in {path} do not fit {type(module).__name__}: {reason}") from None
    return module.to(device).eval(), checkpoint


def _build(checkpoint: dict[str, Any], path: Path) -> Any:
    module = instantiate(Learner, checkpoint["config"]["model"], path)
    module.build_from(Spec(**checkpoint["spec"]))
    return module


def _check_shapes(module: Learner, weights: dict[str, Any], path: Path) -> None:
    if wrong := misfits(module, weights):
        first = textwrap.shorten(next(iter(wrong.values())), 160)
        raise UserError(f"the weights in {path} do not fit {type(module).__name__}: {first}")


def misfits(module: torch.nn.Module, weights: dict[str, Any]) -> dict[str, str]:
    """Return a description of every tensor whose shape differs between a module and weights, by its name.

    Args:
        module: module that should load the weights.
        weights: state dict; values that are no tensors, such as counters, are ignored.
    """
    expected = {name: value.shape for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
    found = {name: value.shape for name, value in weights.items() if isinstance(value, torch.Tensor)}
    return {
        name: f"{name} is {_shape(found.get(name), 'missing')}, expected {_shape(expected.get(name), 'none')}"
        for name in {**expected, **found}
        if expected.get(name) != found.get(name)
    }


def _shape(shape: torch.Size | None, absent: str) -> str:
    return absent if shape is None else str(tuple(shape))


def instantiate(base: type, config: dict[str, Any], path: Path) -> Any:
    """Instantiate a subclass of `base` from {class_path, init_args} in a checkpoint's configuration.

    Raises:
        UserError: the class cannot be instantiated, or it names an untrusted package, which is not imported.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "made", fail_untyped=False, required=True)
    try:
        with _importing_own_classes_alone():
            return parser.instantiate(parser.parse_object({"made": config})).made
    except (ArgumentError, ValueError) as error:
        if denied := re.search(r"Importing '([\w.]+)' is not allowed", str(error)):
            raise UserError(_untrusted(path, denied[1])) from None
        # The parser nests its errors: the innermost error of the first alternative is the specific one.
        first = re.sub(r"\n\s*- Expected a <class 'NoneType'>.*", "", str(error), flags=re.DOTALL)
        _, problem, reason = re.split(r"\n\s*- ", first)[-1].rpartition("given class_path")
        reason = explain(reason if "Parser key" in reason else problem + reason, ())
        raise UserError(f"{path} cannot be built: {reason}") from None


def trusted() -> list[str]:
    """Return the packages besides dreamcade whose classes and worlds a checkpoint may name."""
    return [name for name in os.environ.get(TRUST, "").split(",") if name]


def _untrusted(path: Path, name: str) -> str:
    package = name.partition(".")[0]
    return (
        f"{path} cannot be built: it names {name}, which is not dreamcade's and was not imported; "
        f"if you trust both, set {TRUST}={package}"
    )


@contextmanager
def _importing_own_classes_alone() -> Iterator[None]:
    # The settings are global to the process, but a user's own configuration may name any package.
    before = dict(parsing_settings)
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=[*OWN, *trusted()],
        instantiate_subclass_spec_in_any=False,
    )
    try:
        yield
    finally:
        parsing_settings.update(before)


@contextmanager
def blaming(path: str | Path) -> Iterator[None]:
    """Turn every exception in the block into a UserError of one line that names the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} cannot be used: {brief(error)}") from error


def actor(path: Path, checkpoint: dict[str, Any], searches: bool = False) -> dict[str, Any] | None:
    """Return the {class_path, init_args} of the actor that a checkpoint's run evaluated.

    Where the run evaluated nothing, it is the first actor of another callback that searches.

    Args:
        path: path of the checkpoint.
        checkpoint: the checkpoint.
        searches: skip actors that do not search.

    Returns:
        The actor, whose classes may be imported; None if no callback names one.
    """
    with blaming(path):
        evaluated, others = [], []
        for callback in checkpoint["config"].get("trainer", {}).get("callbacks") or []:
            settings = callback.get("init_args", {})
            named = settings.get("actor")
            if search := settings.get("search"):
                named = {"class_path": f"{SearchPlay.__module__}.SearchPlay", "init_args": {"search": search}}
            if callback["class_path"].rpartition(".")[2] in EVALUATIONS:
                evaluated.append(named or {"class_path": f"{PolicyPlay.__module__}.PolicyPlay"})
            elif named is not None and _searches(named):
                others.append(named)
        found = next((named for named in evaluated + others if _searches(named) or not searches), None)
        if found is not None:
            instantiate(Play, found, path)
        return found


def _searches(named: dict[str, Any]) -> bool:
    return "search" in named.get("init_args", {})


def world(path: Path, checkpoint: dict[str, Any]) -> Any:
    """Return the datamodule of a checkpoint's run without a store; it makes environments of the run's world."""
    for key in ("description", "env_steps"):
        if key not in checkpoint:
            raise UserError(f"{path} keeps no {key}: expected a checkpoint that `dreamcade fit` wrote")
    with blaming(path):
        config, description = checkpoint["config"]["data"], checkpoint["description"]
        for named in (config.get("init_args", {}).get("id"), description.get("id")):
            package, colon, _ = str(named).partition(":")  # Gymnasium imports the package
            if colon and package.partition(".")[0] not in trusted():
                raise UserError(_untrusted(path, package))
        data = instantiate(LightningDataModule, config, path)
        for key, value in data.expected().items():
            if found := difference(description.get(key), json.loads(json.dumps(value)), key):
                raise UserError(f"{path} contradicts itself: it was trained on {found}")
    data.described = description
    return data


def folder(path: str | Path) -> Path:
    """Return the folder of a checkpoint's run.

    Raises:
        UserError: a file in the folder is a link, a pipe or a device.
    """
    found = Path(path).resolve().parent.parent
    check_links(found)
    return found


def check_links(folder: Path) -> None:
    """Raise a UserError if a file in a run's folder is a link, a pipe or a device, which a run would write to."""
    for file in folder.iterdir() if folder.is_dir() else ():
        if not file.is_dir() and (file.is_symlink() or not file.is_file()):
            raise UserError(f"{file} is a link or no file: a run writes only to its own files, remove it")


def check_world(path: str | Path, checkpoint: dict[str, Any], game: str | None) -> None:
    """Raise a UserError unless a checkpoint was trained on this game, in any usual spelling; None accepts any game."""
    world = checkpoint.get("world", "a world without a name")
    with suppress(UserError):  # other worlds are compared by their own name
        game = game and canonical_game(game)
    if game not in (None, world):
        raise UserError(f"{path} is of {world}, not of {game}")
