"""Seeds of 64 bits, as ComfyUI's own samplers take them, wherever a method draws."""

import pytest
import torch

from weft.engine.inversion import add_noise
from weft.methods.candidates import candidates, seed_of
from weft.tests.numerics import assert_close
from weft.tests.tiny import make_latents

LARGEST = 2**64 - 1


@pytest.mark.parametrize("noise", ["shared", "per_frame"])
def test_the_largest_seed_is_one_like_others(tiny_instruct, noise):
    prompt = tiny_instruct.text.embed("")
    one, again, other = (
        add_noise(tiny_instruct, make_latents(), prompt, steps=2, noise=noise, seed=seed).at(2)
        for seed in (LARGEST, LARGEST, LARGEST - 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_candidates_after_the_largest_seed_begin_at_0(tiny_instruct):
    frame, said = torch.rand(1, 8, 12, 3, generator=torch.Generator().manual_seed(0)), tiny_instruct.text.embed("a red")
    two = candidates(tiny_instruct, frame, said, count=2, seed=LARGEST, steps=2)
    first = candidates(tiny_instruct, frame, said, count=1, seed=0, steps=2)
    assert_close(two[1:], first)
    assert (seed_of(3, 4), seed_of(LARGEST, 1)) == (7, 0)
