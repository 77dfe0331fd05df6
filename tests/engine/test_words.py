"""The words: rows, prompts, and where a pixel is in the latent."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from weft.engine.call import Call, Evaluation, Run
from weft.engine.plan import Control
from weft.engine.source import Inverted, Noised
from weft.engine.words import (
    NEGATIVE,
    POSITIVE,
    SOURCE,
    SOURCE_NEGATIVE,
    UNCONDITIONAL,
    Layout,
    Prompt,
    Row,
    Site,
)
from weft.tests.engine.analytic import Gaussian

STILL = Layout(8)
FOUR, EIGHT = Layout(8, 4, True), Layout(32, 8, True)  # 4k + 1 frames, as Wan; 8k + 1, as LTX
PLAIN_FOUR = Layout(8, 4)
LAYOUTS = {"still": STILL, "4k + 1": FOUR, "8k + 1": EIGHT, "4k": PLAIN_FOUR}


# ---- rows and prompts ------------------------------------------------------------------------------------------------


def test_rows_are_of_the_source_or_of_the_edit_and_name_their_region():
    assert [r.of_source for r in (SOURCE, SOURCE_NEGATIVE, UNCONDITIONAL, NEGATIVE, POSITIVE)] == [True] * 2 + [
        False
    ] * 3
    assert [str(r) for r in (SOURCE, POSITIVE, Row("negative", 1))] == ["source", "positive", "negative of region 2"]
    assert Row("positive") == POSITIVE
    assert Row("positive", 1) != POSITIVE
    assert len({Row("positive"), POSITIVE, Row("positive", 1)}) == 2
    with pytest.raises(FrozenInstanceError):
        POSITIVE.region = 3


def test_words_that_hold_tensors_are_equal_to_themselves_only():
    """ComfyUI hashes and compares what it caches."""
    backbone, x = Gaussian(), torch.zeros(1, 1, 1, 1, 1)
    prompt, schedule = backbone.text.embed("a cat"), backbone.denoiser.schedule(4)
    call = Call(Site("a", "spatial", "a", 0, 0), (POSITIVE,), x, x, x, (0,), (1, 1, 1), 1.0, x, x, None, Run())
    trajectory = Inverted(torch.zeros(5, 3, 4, 6, 10), schedule, prompt, "paper", "gaussian")
    noised = Noised(torch.zeros(3, 4, 6, 10), torch.zeros(()), schedule, prompt)
    for word in (prompt, trajectory, noised, Evaluation(x, 1, (prompt,), (POSITIVE,)), call, Run(), Control()):
        copy = replace(word)
        assert word == word
        assert word != copy
        assert len({word, copy}) == 2


def test_a_prompt_for_all_frames_is_that_for_any_of_them():
    prompt = Prompt({"embedding": torch.randn(1, 2, 3)}, "a cat", "text", ("a ", "cat "))
    assert prompt.select([4, 1]) is prompt


def test_a_prompt_of_each_frame_gives_those_of_some():
    cond = {"embedding": torch.randn(5, 2, 3), "pooled": torch.randn(5, 3), "size": torch.randn(1, 2), "name": "x"}
    prompt = Prompt(cond, "each its own", "text", ("each ",), 5)
    got = prompt.select(range(1, 4, 2))
    assert (got.frames, got.text, got.encoder, got.tokens) == (2, prompt.text, prompt.encoder, prompt.tokens)
    for name in ("embedding", "pooled"):
        assert torch.equal(got.cond[name], cond[name][[1, 3]])
    assert got.cond["size"] is cond["size"]  # there is one for all
    assert got.cond["name"] == "x"
    assert prompt.frames == len(prompt.cond["embedding"]) == 5  # it is as it was
    assert got.select([1]).frames == 1


# ---- frames of pixels and of the latent ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "pixels", "latents"),
    [
        (STILL, (1, 2, 7), (1, 2, 7)),
        (FOUR, (1, 2, 5, 6, 81), (1, 2, 2, 3, 21)),
        (EIGHT, (1, 2, 9, 10, 121), (1, 2, 2, 3, 16)),
        (PLAIN_FOUR, (1, 4, 5, 16), (1, 1, 2, 4)),
    ],
    ids=LAYOUTS,
)
def test_known_clips_take_the_latents_they_are_known_to_take(layout, pixels, latents):
    assert tuple(map(layout.latent_frames, pixels)) == latents


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_pixel_and_latent_frames_are_inverse(layout):
    for latent in range(1, 40):
        assert layout.latent_frames(layout.pixel_frames(latent)) == latent
    for pixel in range(1, 200):
        latent = layout.latent_frames(pixel)
        assert layout.pixel_frames(latent) >= pixel  # they hold the clip
        assert latent == 1 or layout.pixel_frames(latent - 1) < pixel  # and one less would not


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_spans_are_every_pixel_frame_once_and_in_order(layout, count):
    spans = [layout.span(t) for t in range(count)]
    assert [i for span in spans for i in span] == list(range(layout.pixel_frames(count)))
    assert len(spans[0]) == (1 if layout.first_alone else layout.frames)
    assert {len(span) for span in spans[1:]} <= {layout.frames}
    for t, span in enumerate(spans):
        assert {layout.latent_frames(i + 1) - 1 for i in span} == {t}  # the frame that such a clip would end in


# ---- masks -----------------------------------------------------------------------------------------------------------


def by_hand(layout, mask, grid):
    """[T, 1, h, w]: a cell of a latent frame is 1 where half white is in any pixel of any of its frames."""
    h, w = grid
    count = 1 if len(mask) == 1 else layout.latent_frames(len(mask))
    cells = torch.zeros(count, 1, h, w)
    for t in range(count):
        frames = [0] if len(mask) == 1 else [i for i in layout.span(t) if i < len(mask)]
        for y in range(h):
            for x in range(w):
                s = layout.pixels
                cells[t, 0, y, x] = (mask[frames, y * s : (y + 1) * s, x * s : (x + 1) * s] >= 0.5).any()
    return cells


@pytest.mark.parametrize("layout", [Layout(2), Layout(2, 4, True), Layout(3, 8, True), Layout(2, 4)])
@pytest.mark.parametrize("latents", [1, 2, 4])
@pytest.mark.parametrize("short", [0, 1, 3])
def test_a_latent_frame_is_masked_where_any_of_its_frames_is(layout, latents, short):
    """Odd sizes, and clips that do not fill their last latent frame."""
    frames = max(1, layout.pixel_frames(latents) - short)
    mask = torch.rand(frames, 3 * layout.pixels, 5 * layout.pixels).pow(12)  # hardly any cell is reached by all frames
    got = layout.cells(mask, (3, 5))
    assert torch.equal(got, by_hand(layout, mask, (3, 5)))
    if frames > 1:
        assert len(got) == layout.latent_frames(frames)
    if latents == 4 and not short and layout.frames > 1:
        assert 0 < got.mean() < 1


@pytest.mark.parametrize("frame", range(9))
def test_one_frame_of_pixels_masks_its_latent_frame_and_no_other(frame):
    mask = torch.zeros(9, 6, 4)
    mask[frame, 3, 1] = 1
    cells = Layout(2, 4, True).cells(mask, (3, 2))
    assert cells.shape == (3, 1, 3, 2)
    want = 0 if frame == 0 else 1 + (frame - 1) // 4
    assert cells.nonzero().tolist() == [[want, 0, 1, 0]]


@pytest.mark.parametrize("layout", [Layout(2), Layout(2, 4, True)])
def test_one_mask_for_all_frames_stays_one(layout):
    mask = torch.zeros(1, 6, 4)
    mask[0, :2] = 1
    assert torch.equal(layout.cells(mask, (3, 2)), torch.tensor([[[[1.0, 1], [0, 0], [0, 0]]]]))


@pytest.mark.parametrize(("value", "there"), [(0.49, 0), (0.5, 1), (1.0, 1)])
def test_half_white_counts_and_faint_specks_do_not(value, there):
    mask = torch.zeros(2, 4, 4, dtype=torch.float64)
    mask[1, 2, 3] = value
    cells = Layout(2).cells(mask, (2, 2))
    assert cells.dtype == torch.float32
    assert cells.sum() == there


def test_a_mask_of_the_clip_is_taken():
    for layout, frames in ((STILL, 3), (PLAIN_FOUR, 12), (PLAIN_FOUR, 9), (FOUR, 9), (FOUR, 7), (EIGHT, 17)):
        latents = torch.zeros(3, 4, 5, 7)
        layout.require_mask(torch.zeros(frames, 5 * layout.pixels, 7 * layout.pixels), latents)
        layout.require_mask(torch.zeros(1, 5 * layout.pixels, 7 * layout.pixels), latents)


@pytest.mark.parametrize(
    ("layout", "shape", "match"),
    [
        (STILL, (2, 40, 56), "the mask has 2 frames and the clip 3: give one mask a frame, or one for all"),
        (FOUR, (3, 40, 56), "the mask has 3 frames and the clip 9"),  # as many as latents, but they are not its frames
        (FOUR, (10, 40, 56), "the mask has 10 frames and the clip 9"),
        (STILL, (3, 56, 40), "the mask is 40x56 pixels and the clip 56x40: make the mask from the same frames"),
        (STILL, (1, 5, 7), "the mask is 7x5 pixels and the clip 56x40"),
    ],
)
def test_a_mask_of_another_clip_is_refused(layout, shape, match):
    with pytest.raises(ValueError, match=match):
        layout.require_mask(torch.zeros(shape), torch.zeros(3, 4, 5, 7))


def test_a_clip_whose_frames_stand_alone_again_and_again():
    """MiniMax H3: 1, 4, 4, 4, 4 frames, and so on; whole clips have 17k + 5."""
    layout = Layout(16, 4, True, again=5, last=2)
    assert [layout.pixel_frames(n) for n in (1, 2, 5, 6, 7, 12)] == [1, 5, 17, 18, 22, 39]
    assert [layout.latent_frames(n) for n in (1, 2, 5, 6, 17, 18, 22, 39)] == [1, 2, 2, 3, 5, 6, 7, 12]
    assert [frame for t in range(7) for frame in layout.span(t)] == list(range(22))
    assert [layout.fitting(n) for n in (1, 4, 5, 21, 22, 38, 39)] == [1, 1, 5, 5, 22, 22, 39]
    assert layout.filled(23) == 39
