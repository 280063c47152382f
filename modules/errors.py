from __future__ import annotations

import difflib
import textwrap
import traceback
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """A mistake of the user: one line that says what is wrong, what was expected and the nearest right spelling.

    The command line prints it and exits with code 2; anything else that escapes is a bug and keeps its traceback.
    """


def brief(error: Exception) -> str:
    """Return what went wrong and where, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {textwrap.shorten(str(error), 200)}{where}"


def nearest(word: str, words: Iterable[str]) -> str:
    """Return the word that is spelled most alike."""
    words = sorted(set(words))
    lower = {candidate.lower(): candidate for candidate in words}
    close = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.0)
    return lower[close[0]] if close else ""
