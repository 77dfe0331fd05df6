"""When memory ends in an inversion or an edit, the run goes on with fewer frames at a time, and the result is the same.

The other places are tested where they are: the VAE both ways in `tests/backbones/test_diffusers_parts.py`, STR's passes
with gradients in `tests/backbones/test_recompute.py`.
"""

import logging

import pytest
import torch

from weft.engine.edit import edit
from weft.engine.inversion import invert
from weft.engine.plan import PLAIN
from weft.tests.engine.analytic import Gaussian
from weft.tests.numerics import assert_close
from weft.tests.tiny import make_latents

FRAMES, STEPS = 7, 3


def little_memory(backbone, most):
    """Its network runs out of memory above so many frames. Returns how many came at a time."""
    predict, taken = backbone.denoiser.predict, []

    def small(evaluation, plan=PLAIN):
        taken.append(evaluation.latents.shape[1])
        if taken[-1] > most:
            raise torch.OutOfMemoryError("full")
        return predict(evaluation, plan)

    backbone.denoiser.predict = small
    return taken


@pytest.mark.parametrize("most", [6, 3, 1])
def test_an_inversion_steps_down_and_gives_the_same(most, caplog):
    clip, backbone = make_latents(FRAMES), Gaussian()
    want = invert(Gaussian(), clip, backbone.text.embed("a dog"), steps=STEPS).latents
    taken = little_memory(backbone, most)
    with caplog.at_level(logging.WARNING):
        got = invert(backbone, clip, backbone.text.embed("a dog"), steps=STEPS).latents
    assert_close(got, want)
    fits = [n for n in taken if n <= most]
    assert sum(fits) == FRAMES * (STEPS + 1)  # every frame once an evaluation
    assert len(caplog.records) == len(taken) - len(fits) == len({n for n in taken if n > most})  # it does not try again


@pytest.mark.parametrize("most", [6, 3, 1])
def test_an_edit_steps_down_and_gives_the_same(most, caplog):
    backbone = Gaussian()
    source, target = backbone.text.embed("a dog"), backbone.text.embed("a cat runs")
    trajectory = invert(backbone, make_latents(FRAMES), source, steps=STEPS)
    want = edit(backbone, trajectory, target, guidance=2.0)
    taken = little_memory(backbone, most)
    with caplog.at_level(logging.WARNING):
        got = edit(backbone, trajectory, target, guidance=2.0)
    assert_close(got, want)
    fits = [n for n in taken if n <= most]
    assert sum(fits) == FRAMES * STEPS
    assert len(caplog.records) == len(taken) - len(fits) == len({n for n in taken if n > most})
