"""Checkpoints are checked before anything is built on them."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from modules.errors import UserError


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
