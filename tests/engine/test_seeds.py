import torch

from weft.engine.seeds import generator_for


def draw(*purpose):
    return torch.rand(3, generator=generator_for(*purpose)).tolist()


def test_a_purpose_gives_the_same_numbers_whatever_was_drawn_before():
    first = draw(7, 3, "layer")
    torch.rand(5)
    assert draw(7, 3, "layer") == first


def test_every_purpose_has_numbers_of_its_own():
    purposes = [(1, 23), (12, 3), (1, 2, 3), (1, 2, "3"), (0,), (2**53,), (-1,)]
    assert len({tuple(draw(*p)) for p in purposes}) == len(purposes)
