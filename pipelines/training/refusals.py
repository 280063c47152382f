"""What the Trainer, its strategy and Lightning's callbacks refuse, in one line that names the key."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from modules.errors import UserError

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
REFUSALS = (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError, KeyError)
"""What Lightning raises where it refuses a setting. Other exceptions, and these from anybody's else code, are bugs."""


@contextmanager
def refusing(settings: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Turn what Lightning itself refuses within into a UserError, and let everything else pass.

    Args:
        settings: the Trainer's arguments, where the Trainer is made within: the one whose value the refusal quotes is
            named as the key at fault. None where the Trainer runs, when only a refusal by a check of Lightning's
            callbacks is the user's mistake.
    """
    try:
        yield
    except MisconfigurationException as error:
        raise UserError(_line(error, settings)) from error
    except REFUSALS as error:
        module = _raised_in(error)
        if settings is None and module.startswith("lightning.pytorch.callbacks."):
            raise UserError(f"{module.rpartition('.')[2]}: {_said(error)}") from error
        if settings is not None and module.startswith("lightning."):
            raise UserError(_line(error, settings)) from error
        raise


def check_precision(precision: str) -> None:
    """Raise a UserError unless batches, which keep their types, can be learned from at a precision."""
    if precision not in PRECISIONS:
        raise UserError(
            f"trainer.precision is {precision}: expected one of {', '.join(PRECISIONS)}, weights are always float32"
        )


def _line(error: Exception, settings: Mapping[str, Any] | None) -> str:
    said = _said(error)
    quoted = [
        name
        for name, value in (settings or {}).items()
        if isinstance(value, str | int | float) and not isinstance(value, bool) and f"{value!r}" in said
    ]
    return f"trainer.{quoted[0]} is {settings[quoted[0]]}: {said}" if settings and quoted else said


def _said(error: Exception) -> str:
    return " ".join(str(error).split())


def _raised_in(error: BaseException) -> str:
    """Return the module whose code raised."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return str(frames[-1][0].f_globals.get("__name__", "")) if frames else ""
