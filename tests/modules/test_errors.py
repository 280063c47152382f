"""Numbers that a user may and may not give."""

import math

import pytest

from modules.errors import UserError, check_range


@pytest.mark.parametrize(
    ("value", "limits", "allowed"),
    [
        (-1, {"low": 0}, "at least 0"),
        (0.0, {"low": 0, "above": True}, "more than 0"),
        (1.5, {"low": 0, "high": 1}, "from 0 to 1"),
        (0, {"low": 0, "high": 1, "above": True}, "more than 0 and at most 1"),
        (math.inf, {"low": 0}, "at least 0"),
        (math.nan, {"low": 0, "high": 1}, "from 0 to 1"),
        (math.nan, {}, "a finite number"),
    ],
)
def test_what_is_outside_is_refused_with_key_value_and_what_is_allowed(value, limits, allowed):
    with pytest.raises(UserError) as raised:
        check_range("model.lr", value, **limits)
    assert str(raised.value) == f"model.lr must be {allowed}: got {value}"


@pytest.mark.parametrize(
    ("value", "limits"),
    [(0, {"low": 0}), (1, {"low": 0, "high": 1}), (1e-9, {"low": 0, "above": True}), (-5, {}), (None, {"low": 1})],
)
def test_what_is_inside_passes(value, limits):
    check_range("model.lr", value, **limits)
