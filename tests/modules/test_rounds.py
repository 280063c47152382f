"""How often each part of an agent learns."""

import pytest

from modules.errors import UserError
from modules.rounds import Rounds, Turn


def turns(rounds: Rounds, num: int) -> list[Turn]:
    return [rounds.at(update) for update in range(num)]


def test_by_default_both_learn_at_every_update():
    assert turns(Rounds(), 3) == [Turn(n, True, True) for n in range(3)]


def test_parts_learn_one_after_the_other():
    found = turns(Rounds(model_updates=[3, 1], policy_updates=2, together=False), 11)
    model, policy = (True, False), (False, True)
    expected = [(0, *model)] * 3 + [(0, *policy)] * 2
    for number in (1, 2):
        expected += [(number, *model)] + [(number, *policy)] * 2
    assert found == expected


def test_parts_learn_together_as_long_as_both_have_updates():
    found = turns(Rounds(model_updates=[1, 3], policy_updates=[2, 0, 1]), 11)
    both, model, policy = (True, True), (True, False), (False, True)
    expected = [(0, *both), (0, *policy), (1, *model), (1, *model), (1, *model)]
    for number in (2, 3):
        expected += [(number, *both), (number, *model), (number, *model)]
    assert found == expected


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(("model", "policy"), [(1, 1), ([3, 1], 2), ([0, 4], [2, 1, 3]), (2, 0), (5, [7])])
def test_rounds_pin_the_ratio_and_say_when_they_end(model, policy, together):
    rounds = Rounds(model, policy, together)
    found = turns(rounds, 200)
    ends = [update for update in range(1, 200) if rounds.ends(update)]
    assert ends == [update for update in range(1, 200) if found[update].number == found[update - 1].number + 1]
    for number in range(found[-1].number):
        these = [turn for turn in found if turn.number == number]
        for part, wanted in (("model", model), ("policy", policy)):
            wanted = wanted[min(number, len(wanted) - 1)] if isinstance(wanted, list) else wanted
            assert sum(getattr(turn, part) for turn in these) == wanted
        assert all(turn.model or turn.policy for turn in these)
        if not together:
            assert not any(turn.model and turn.policy for turn in these)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model_updates": 0, "policy_updates": 0}, "round 0 needs at least one update of a part: got 0 and 0"),
        ({"model_updates": [2, 0], "policy_updates": [0]}, "round 1 needs at least one"),
        ({"model_updates": -1}, "round 0"),
        ({"policy_updates": [1, 2, -3]}, "round 2"),
        ({"policy_updates": []}, "empty list"),
    ],
    ids=str,
)
def test_impossible_rounds(options, words):
    with pytest.raises(UserError, match=words) as raised:
        Rounds(**options)
    assert "\n" not in str(raised.value)
