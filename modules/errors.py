from __future__ import annotations

import difflib
import math
import textwrap
import traceback
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """A user's mistake: one line that says what is wrong, what was expected and the nearest valid spelling.

    The command line prints the line and exits with code 2. Any other exception is a bug and keeps its traceback.
    """


def brief(error: Exception) -> str:
    """Return the type, message and place of an error in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {textwrap.shorten(str(error), 200)}{where}"


def check_range(
    name: str, value: float | None, low: float = -math.inf, high: float = math.inf, above: bool = False
) -> None:
    """Raise a UserError unless a number is finite and lies in a range; None (not set) always passes.

    Args:
        name: key as the user spells it: --epsilon, MuZero.target_every.
        value: number that the user gave.
        low: smallest allowed value.
        high: largest allowed value.
        above: exclude `low` itself.
    """
    if value is None or (math.isfinite(value) and low <= value <= high and not (above and value == low)):
        return
    if math.isinf(high):
        allowed = "a finite number" if math.isinf(low) else f"more than {low}" if above else f"at least {low}"
    else:
        allowed = f"more than {low} and at most {high}" if above else f"from {low} to {high}"
    raise UserError(f"{name} must be {allowed}: got {value}")


def nearest(word: str, words: Iterable[str]) -> str:
    """Return the candidate with the most similar spelling; "" without candidates."""
    words = sorted(set(words))
    lower = {candidate.lower(): candidate for candidate in words}
    close = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.0)
    return lower[close[0]] if close else ""
