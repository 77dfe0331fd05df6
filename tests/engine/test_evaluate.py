"""Steps outside, chunks of frames inside; and guidance towards the source's picture."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch

from weft.engine.call import Evaluation
from weft.engine.edit import edit
from weft.engine.inversion import invert
from weft.engine.monitor import Monitor
from weft.engine.plan import PLAIN, Control
from weft.tests.engine.analytic import Gaussian
from weft.tests.numerics import assert_close
from weft.tests.tiny import make_latents

STEPS, FRAMES = 3, 7


@dataclass(frozen=True, eq=False)
class Watch(Control):
    """Writes down which frames are evaluated together."""

    seen: list = field(default_factory=list)

    def attention(self, call, q, k, v, attend):
        if call.site.order == 0:
            self.seen.append(call.evaluation.frames)
        return attend(q, k, v)


@dataclass(frozen=True, eq=False)
class Crossing(Control):
    needs_all_frames: ClassVar[bool] = True


@dataclass(frozen=True, eq=False)
class Anchor(Control):
    """First evaluates two frames together, then lets every chunk see what that gave."""

    seen: list = field(default_factory=list)

    def evaluate(self, evaluation, evaluate):
        self.seen.append(evaluation.frames)
        first = evaluation.select([0, 4])
        anchors = evaluate(Evaluation(**{**vars(first), "whole": True}))
        return evaluate(evaluation.share(self, anchors))

    def attention(self, call, q, k, v, attend):
        if call.site.order == 0:
            shared = call.evaluation.shared.get(self)
            self.seen.append((call.evaluation.frames, None if shared is None else shared.shape[1]))
        return attend(q, k, v)


def clip(backbone, frames=FRAMES):
    return invert(backbone, make_latents(frames, (5, 9)), backbone.text.embed("a red square"), steps=STEPS)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100])
def test_chunks_of_frames_change_nothing(tiny_image64, chunk):
    whole = clip(tiny_image64)
    inverted = invert(tiny_image64, make_latents(FRAMES, (5, 9)), whole.prompt, steps=STEPS, chunk_frames=chunk)
    assert_close(inverted.latents, whole.latents)
    positive = tiny_image64.text.embed("a blue cross")
    want = edit(tiny_image64, whole, positive, guidance=3.0)
    assert_close(edit(tiny_image64, whole, positive, guidance=3.0, chunk_frames=chunk), want)


@dataclass(frozen=True, eq=False)
class Latents(Control):
    needs_source: ClassVar[bool] = False
    seen: list = field(default_factory=list)

    def evaluate(self, evaluation, evaluate):
        self.seen.append(evaluation.latents)
        return evaluate(evaluation)


@dataclass(frozen=True, eq=False)
class BesideSource(Latents):
    needs_source: ClassVar[bool] = True


def test_rows_of_the_edit_are_one_tensor_however_long_the_clip(tiny_instruct):
    trajectory = clip(tiny_instruct)
    for control, rows, tensors in ((Latents(), 3, 1), (BesideSource(), 4, 4)):
        edit(tiny_instruct, trajectory, tiny_instruct.text.embed("a blue cross"), plan=PLAIN.then(control))
        latents = control.seen[0]
        assert len(latents) == rows
        assert len({row.data_ptr() for row in latents}) == tensors


def test_attention_knows_which_frames_a_chunk_holds(tiny_image):
    watch, trajectory = Watch(), clip(tiny_image)
    edit(tiny_image, trajectory, tiny_image.text.embed("a blue cross"), plan=PLAIN.then(watch), chunk_frames=3)
    assert watch.seen == [(0, 1, 2), (3, 4, 5), (6,)] * STEPS


def test_what_a_control_evaluates_whole_is_not_cut_and_what_it_shares_reaches_every_chunk(tiny_image):
    anchor, trajectory = Anchor(), clip(tiny_image)
    edit(tiny_image, trajectory, tiny_image.text.embed("a blue cross"), plan=PLAIN.then(anchor), chunk_frames=1)
    step = [tuple(range(FRAMES)), ((0, 4), None), *(((f,), 2) for f in range(FRAMES))]
    assert anchor.seen == step * STEPS


def test_memory_is_asked_for_one_chunk():
    backbone = Gaussian()
    latents, prompt = backbone.sample(frames=7), backbone.text.embed("a dog")
    trajectory = invert(backbone, latents, prompt, steps=STEPS, chunk_frames=2)
    edit(backbone, trajectory, prompt, guidance=2.0, chunk_frames=2)
    assert backbone.on_device == [("network", 2 * 60), ("network", 2 * 2 * 60)]


def test_cancel_is_asked_before_every_chunk():
    class Asked(Monitor):
        count = 0

        def check(self):
            self.count += 1

    backbone, asked = Gaussian(), Asked()
    trajectory = invert(backbone, backbone.sample(frames=7), backbone.text.embed("a dog"), steps=STEPS)
    edit(backbone, trajectory, trajectory.prompt, chunk_frames=2, monitor=asked)
    assert asked.count >= STEPS * 4


def test_frames_that_see_each_other_are_not_cut(tiny, tiny_image):
    trajectory = clip(tiny, frames=3)
    with pytest.raises(ValueError, match="'tiny' looks at all frames together and cannot run in chunks of 2"):
        edit(tiny, trajectory, trajectory.prompt, chunk_frames=2)
    with pytest.raises(ValueError, match="looks at all frames together"):
        invert(tiny, make_latents(), trajectory.prompt, steps=STEPS, chunk_frames=2)
    edit(tiny, trajectory, trajectory.prompt, chunk_frames=3)
    trajectory, plan = clip(tiny_image), PLAIN.then(Crossing())
    with pytest.raises(ValueError, match="Crossing looks at all 7 frames together and cannot run in chunks of 2"):
        edit(tiny_image, trajectory, trajectory.prompt, plan=plan, chunk_frames=2)
    with pytest.raises(ValueError, match=r"want 0 \(all frames at once\) or more frames a chunk, got -1"):
        edit(tiny_image, trajectory, trajectory.prompt, chunk_frames=-1)


@pytest.mark.parametrize(("text", "picture"), [(7.5, 1.5), (1.0, 1.5), (3.0, 1.0), (1.0, 1.0)])
def test_guidance_towards_text_and_picture_is_that_of_the_paper(tiny_instruct64, text, picture):
    """Brooks et al. 2023, equation 3, with the negative prompt for the empty one."""
    backbone, trajectory = tiny_instruct64, clip(tiny_instruct64)
    positive, negative = backbone.text.embed("turn it into a blue cross"), backbone.text.embed("red")
    got = edit(backbone, trajectory, positive, negative=negative, guidance=text, image_guidance=picture)
    z, schedule = trajectory.latents[-1], trajectory.schedule
    for level in range(STEPS, 0, -1):

        def predict(prompt, row, z=z, level=level):
            image, label = trajectory.latents[0], schedule.label(level)
            with torch.no_grad():
                return backbone.denoiser.predict(Evaluation(z[None], label, (prompt,), (row,), image=image))[0]

        none, pictured, both = (
            predict(negative, "unconditional"), predict(negative, "negative"), predict(positive, "positive")
        )  # fmt: skip
        z = schedule.step(z, none + picture * (pictured - none) + text * (both - pictured), level, level - 1)
    assert_close(got, backbone.codec.unscale(z))


def test_models_without_a_picture_ignore_its_guidance(tiny_image):
    trajectory = clip(tiny_image)
    one, other = (edit(tiny_image, trajectory, trajectory.prompt, image_guidance=g) for g in (1.0, 5.0))
    assert torch.equal(one, other)
    with pytest.raises(ValueError, match="want an image guidance scale of 0 or more, got -1"):
        edit(tiny_image, trajectory, trajectory.prompt, image_guidance=-1.0)
