from dataclasses import dataclass
from typing import Any

import pytest
import torch

from weft.engine.digest import digest


@dataclass(frozen=True)
class Thing:
    value: Any


@dataclass(frozen=True)
class Other:
    value: Any


DIFFERENT = [
    (1, 2),
    (1, 1.0),
    (1, "1"),
    (1, True),
    (None, "None"),
    ((1, 2), (2, 1)),
    ((1, (2,)), ((1, 2),)),
    (("ab", "c"), ("a", "bc")),
    ((), ((),)),
    ({"a": 1}, {"a": 2}),
    ({"a": 1}, {"b": 1}),
    (torch.zeros(2), torch.ones(2)),
    (torch.zeros(2, 3), torch.zeros(3, 2)),
    (torch.zeros(2), torch.zeros(2, dtype=torch.float16)),
    (torch.tensor(0.0), torch.tensor(-0.0)),
    (Thing(1), Thing(2)),
    (Thing(1), Other(1)),
    (Thing(torch.zeros(1)), Thing(torch.ones(1))),
    ("\ud800", "\ud801"),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_other_values_have_other_digests(one, other):
    assert digest(one) != digest(other)
    assert len(digest(one)) == 16


def test_the_same_values_have_the_same_digest_whichever_objects_they_are():
    one = {"a": [Thing(torch.arange(6.0).reshape(2, 3).T)], "b": {3, 1, 2}, "c": range(3)}
    other = {"c": (0, 1, 2), "b": {1, 2, 3}, "a": (Thing(torch.arange(6.0).reshape(2, 3).T.contiguous()),)}
    assert digest(one) == digest(other)
    assert digest(torch.tensor(2.0), torch.ones(2).bfloat16()) == digest(torch.tensor(2.0), torch.ones(2).bfloat16())


def test_what_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match="a function cannot be told from another"):
        digest(Thing(lambda: 1))
