"""Steps outside, chunks of frames inside, fewer when memory ends; and guidance towards the source's picture."""

import gc
import logging
import weakref
from dataclasses import dataclass, field, replace

import pytest
import torch

from weft.engine.call import Evaluation
from weft.engine.edit import edit
from weft.engine.evaluate import Chunks, evaluate_with
from weft.engine.inversion import invert
from weft.engine.monitor import Monitor
from weft.engine.plan import PLAIN, Control, EditPlan, Needs
from weft.engine.words import NEGATIVE, POSITIVE, UNCONDITIONAL
from weft.tests.engine.analytic import Gaussian
from weft.tests.numerics import assert_close
from weft.tests.tiny import make_latents

STEPS, FRAMES = 3, 7


@dataclass(frozen=True, eq=False)
class Watch(Control):
    """Writes down which frames are evaluated together."""

    seen: list = field(default_factory=list)

    def attention(self, call, attend):
        if call.site.order == 0:
            self.seen.append(call.frames)
        return attend(call)


@dataclass(frozen=True, eq=False)
class Crossing(Control):
    def needs(self):
        return Needs(all_frames=True)


@dataclass(frozen=True, eq=False)
class Anchor(Control):
    """First evaluates two frames together, then lets every chunk see what that gave."""

    seen: list = field(default_factory=list)

    def evaluate(self, evaluation, evaluate):
        self.seen.append(evaluation.frames)
        anchors = evaluate(replace(evaluation.select([0, 4]), whole=True))
        return evaluate(evaluation.share(self, anchors))

    def attention(self, call, attend):
        if call.site.order == 0:
            shared = call.run.shared.get(self)
            self.seen.append((call.frames, None if shared is None else shared.shape[1]))
        return attend(call)


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
    seen: list = field(default_factory=list)

    def evaluate(self, evaluation, evaluate):
        self.seen.append(evaluation.latents)
        return evaluate(evaluation)


@dataclass(frozen=True, eq=False)
class BesideSource(Latents):
    def needs(self):
        return Needs(source=True)


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
    assert backbone.reserved == [2 * 60, 2 * 2 * 60]


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
    with pytest.raises(ValueError, match=r"want 0 \(as many frames as fit\) or more frames a chunk, got -1"):
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
            predict(negative, UNCONDITIONAL), predict(negative, NEGATIVE), predict(positive, POSITIVE)
        )  # fmt: skip
        z = schedule.step(z, none + picture * (pictured - none) + text * (both - pictured), level, level - 1)
    assert_close(got, backbone.codec.unscale(z))


def test_models_without_a_picture_ignore_its_guidance(tiny_image):
    trajectory = clip(tiny_image)
    one, other = (edit(tiny_image, trajectory, trajectory.prompt, image_guidance=g) for g in (1.0, 5.0))
    assert torch.equal(one, other)
    with pytest.raises(ValueError, match="want an image guidance scale of 0 or more, got -1"):
        edit(tiny_image, trajectory, trajectory.prompt, image_guidance=-1.0)


# ---- when memory ends --------------------------------------------------------------------------------------------


@dataclass
class Small:
    """A network that runs out of memory above so many frames."""

    network: object
    most: int
    taken: list = field(default_factory=list)

    def __call__(self, evaluation, plan=PLAIN):
        self.taken.append(evaluation.latents.shape[1])
        if self.taken[-1] > self.most:
            raise torch.OutOfMemoryError("full")
        return self.network(evaluation, plan)


def evaluation_of(backbone, frames=FRAMES):
    latents = torch.randn(1, frames, 4, 6, 10)
    return Evaluation(latents, 501.0, (backbone.text.embed("a dog"),), (POSITIVE,))


@pytest.mark.parametrize(
    ("most", "taken", "size"),
    [
        (7, [7], 7),
        (6, [7, 4, 3], 4),
        (4, [7, 4, 3], 4),
        (3, [7, 4, 2, 2, 2, 1], 2),
        (2, [7, 4, 2, 2, 2, 1], 2),
        (1, [7, 4, 2, 1, 1, 1, 1, 1, 1, 1], 1),
    ],
)
def test_chunks_halve_when_memory_ends_and_stay_small(caplog, most, taken, size):
    backbone = Gaussian()
    e, small = evaluation_of(backbone), Small(backbone.denoiser.predict, most)
    chunks = Chunks.asked(backbone.denoiser, FRAMES, 0, PLAIN)
    with caplog.at_level(logging.WARNING, logger="weft.engine.evaluate"):
        got = evaluate_with(small, e, PLAIN, chunks)
    assert_close(got, backbone.denoiser.predict(e))
    assert (small.taken, chunks.size) == (taken, size)
    assert len(caplog.records) == len([n for n in taken if n > most])
    if most < 7:
        assert "out of memory with 7 frames at a time: going on with 4" in caplog.text
    small.taken.clear()
    evaluate_with(small, e, PLAIN, chunks)
    assert max(small.taken) == size  # it does not try again


def test_one_frame_that_does_not_fit_raises_what_the_network_raised():
    backbone = Gaussian()
    small, chunks = Small(backbone.denoiser.predict, 0), Chunks(7, True)
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        evaluate_with(small, evaluation_of(backbone), PLAIN, chunks)
    assert small.taken == [7, 4, 2, 1]


def test_frames_that_do_not_fit_late_in_a_clip_are_tried_again_and_no_other():
    backbone = Gaussian()
    e, once = evaluation_of(backbone), []

    def predict(evaluation, plan):
        if 4 in evaluation.frames and len(evaluation.frames) > 1:
            raise torch.OutOfMemoryError("full")
        once.append(evaluation.frames)
        return backbone.denoiser.predict(evaluation, plan)

    got = evaluate_with(predict, e, PLAIN, Chunks(4, True))
    assert_close(got, backbone.denoiser.predict(e))
    assert once == [(0, 1, 2, 3), (4,), (5,), (6,)]


@pytest.mark.parametrize("why", ["the model", "a control"])
def test_frames_that_see_each_other_are_not_cut_when_memory_ends(why):
    backbone, plan = Gaussian(), PLAIN
    if why == "the model":
        backbone.denoiser.framewise = False
    else:
        plan = PLAIN.then(Crossing())
    small, chunks = Small(backbone.denoiser.predict, 6), Chunks.asked(backbone.denoiser, FRAMES, 0, plan)
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        evaluate_with(small, evaluation_of(backbone), plan, chunks)
    assert (small.taken, chunks.size) == ([7], 7)


def test_frames_that_failed_hold_no_memory_when_they_are_tried_again():
    held, alive = [], []

    def predict(evaluation, plan):
        gc.collect()
        alive.append([ref() is not None for ref in held])
        big = evaluation.latents + 1
        held.append(weakref.ref(big))
        if evaluation.latents.shape[1] > 1:
            raise torch.OutOfMemoryError("full")
        return evaluation.latents

    evaluate_with(predict, evaluation_of(Gaussian(), 2), PLAIN, Chunks(2, True))
    assert alive[1] == [False]


def test_what_must_be_evaluated_whole_is_not_cut_when_memory_ends():
    backbone = Gaussian()
    small = Small(backbone.denoiser.predict, 6)
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        evaluate_with(small, replace(evaluation_of(backbone), whole=True), PLAIN, Chunks(7, True))
    assert small.taken == [7]


def test_other_errors_are_not_memory():
    def fail(evaluation, plan):
        raise RuntimeError("something else")

    chunks = Chunks(7, True)
    with pytest.raises(RuntimeError, match="something else"):
        evaluate_with(fail, evaluation_of(Gaussian()), PLAIN, chunks)
    assert chunks.size == 7


def test_an_edit_and_an_inversion_go_on_with_less(monkeypatch):
    backbone = Gaussian()
    latents, prompt, positive = backbone.sample(frames=7), backbone.text.embed("a dog"), backbone.text.embed("a cat")
    whole = invert(backbone, latents, prompt, steps=STEPS)
    want = edit(backbone, whole, positive)
    small = Small(backbone.denoiser.predict, 2)
    monkeypatch.setattr(backbone.denoiser, "predict", small)
    assert_close(invert(backbone, latents, prompt, steps=STEPS).latents, whole.latents)
    assert small.taken[:2] == [7, 4]
    assert max(small.taken[2:]) == 2
    assert_close(edit(backbone, whole, positive), want)


@pytest.mark.parametrize(
    ("free", "size"), [(None, 7), (10**9, 7), (2 * 7 * 60, 7), (2 * 7 * 60 - 1, 4), (3 * 60, 1), (0, 1)]
)
def test_no_more_frames_are_taken_than_free_memory_holds(monkeypatch, free, size):
    """`bytes` of a Gaussian: one a row, frame and cell."""
    denoiser = Gaussian().denoiser
    monkeypatch.setattr(denoiser, "free", lambda: free)
    chunks = Chunks.asked(denoiser, FRAMES, 0, PLAIN)
    chunks.fit(denoiser, 2, (6, 10))
    assert chunks.size == size
    denoiser.framewise = False
    chunks = Chunks.asked(denoiser, FRAMES, 0, PLAIN)
    chunks.fit(denoiser, 2, (6, 10))
    assert chunks.size == 7  # it cannot be cut: let it try


def test_an_edit_asks_how_much_is_free_once_it_is_where_the_network_is(monkeypatch):
    backbone = Gaussian()
    trajectory = invert(backbone, backbone.sample(frames=7), backbone.text.embed("a dog"), steps=STEPS)
    monkeypatch.setattr(backbone.denoiser, "free", lambda: 3 * 2 * 60 if len(backbone.reserved) == 2 else 0)
    backbone.evaluations.clear()
    edit(backbone, trajectory, trajectory.prompt, guidance=2.0)
    assert [len(e.frames) for e in backbone.evaluations] == [2, 2, 2, 1] * STEPS


@pytest.mark.parametrize(("asked", "size"), [(0, 7), (3, 3), (7, 7), (100, 7)])
def test_chunks_are_what_was_asked_for(asked, size):
    denoiser = Gaussian().denoiser
    assert Chunks.asked(denoiser, FRAMES, asked, PLAIN) == Chunks(size, may_shrink=True)
    assert Chunks.asked(denoiser, FRAMES, 0, EditPlan((Crossing(),))) == Chunks(FRAMES, may_shrink=False)


# ---- controls around an evaluation --------------------------------------------------------------------------------


def test_without_chunks_the_network_is_given_all_frames():
    backbone = Gaussian()
    e = evaluation_of(backbone)
    assert torch.equal(evaluate_with(backbone.denoiser.predict, e, PLAIN), backbone.denoiser.predict(e))
    assert backbone.evaluations[0] is e
    assert backbone.denoiser.plans[0] is PLAIN
