from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from weft.engine.call import Evaluation
from weft.engine.correspondence import Correspondence
from weft.engine.monitor import Monitor
from weft.engine.plan import PLAIN
from weft.engine.probe import read_feature
from weft.engine.words import SOURCE
from weft.methods import correspondence as module
from weft.methods.correspondence import (
    as_pictures,
    correspondence,
    cosines_as_pictures,
    decoder_stage,
    match_frames,
    parse_points,
)
from weft.tests.engine.analytic import Gaussian
from weft.tests.numerics import assert_close
from weft.tests.tiny import make_latents

PLACES = torch.arange(60, dtype=torch.int32)


def test_identical_frames_stay_in_place(tiny_image):
    found = correspondence(tiny_image, make_latents(1).expand(4, -1, -1, -1))
    assert (found.frames, found.grid, found.level, found.top_k) == (4, (6, 10), 0, 3)
    for frame in range(4):
        assert (found.matches(frame)[..., 0] == PLACES).all()


class Still:
    """Features that are the latents themselves, without noise: what is done with features, without a network."""

    def __init__(self, denoiser):
        self.denoiser = denoiser

    def schedule(self, steps):
        return replace(self.denoiser.schedule(steps), noise=(0.0,) * (steps + 1))

    def __getattr__(self, name):
        return getattr(self.denoiser, name)


@pytest.fixture
def still(tiny_image, monkeypatch):
    monkeypatch.setattr(module, "read_feature", lambda evaluate, evaluation, plan, block: evaluation.latents)
    return replace(tiny_image, denoiser=Still(tiny_image.denoiser))


def shifted(dy, dx, frames=4, size=(12, 14)):
    """One picture, moved on by (dy, dx) each frame, with something new coming in at the borders."""
    big = make_latents(1, (size[0] * 4, size[1] * 4), seed=1)[0]
    top, left = size[0] * 3 // 2, size[1] * 3 // 2
    cut = [(top - f * dy, left - f * dx) for f in range(frames)]
    return torch.stack([big[:, y : y + size[0], x : x + size[1]] for y, x in cut])


@pytest.mark.parametrize(("dy", "dx"), [(0, 1), (2, -3), (-4, 4), (0, 0)])
def test_shifted_frames_are_found_again(still, dy, dx):
    found = correspondence(still, shifted(dy, dx), timestep=0)
    h, w = found.grid
    for frame in range(found.frames):
        matches = found.matches(frame)[..., 0]
        for place in range(h * w):
            for other in range(found.frames):
                y, x = place // w + (other - frame) * dy, place % w + (other - frame) * dx
                if 0 <= y < h and 0 <= x < w:
                    assert matches[other, place] == y * w + x


def test_a_shift_of_more_than_half_the_window_is_lost_and_a_wider_one_finds_it(still):
    latents, inside = shifted(5, 0, frames=2), slice(0, 7 * 14)
    want = torch.arange(14 * 7) + 5 * 14
    assert not (correspondence(still, latents, timestep=0).forward[0, inside, 0] == want).any()
    assert (correspondence(still, latents, timestep=0, window=11).forward[0, inside, 0] == want).all()


@pytest.mark.parametrize("up_block", [1, 2, 3])
def test_it_is_the_papers_formula_by_brute_force(tiny_image64, up_block):
    """Equations 7-9: a window that holds the grid compares everything with everything."""
    latents = make_latents(3)
    found = correspondence(tiny_image64, latents, window=21, top_k=4, up_block=up_block, seed=5)
    schedule = tiny_image64.denoiser.schedule(500)
    level = schedule.timesteps.index(261) + 1
    clean = tiny_image64.codec.scale(latents)
    eps = torch.randn(1, 1, 4, 6, 10, generator=torch.Generator().manual_seed(5))[0]
    x = schedule.signal[level] * clean + schedule.noise[level] * eps
    e = Evaluation(x[None], 261, (tiny_image64.text.embed(""),), (SOURCE,))
    with torch.no_grad():
        block = decoder_stage(tiny_image64.denoiser, up_block)
        features = read_feature(tiny_image64.denoiser.predict, e, PLAIN, block)[0].float()
    tokens = F.normalize(features, dim=1).flatten(2)
    for i in range(2):
        similarity = torch.einsum("cn,cm->nm", tokens[i], tokens[i + 1])
        for table, scores in ((found.forward[i], similarity), (found.backward[i], similarity.T)):
            best = scores.topk(4).values
            assert_close(scores.gather(1, table.long()), best)


def test_frames_a_few_at_a_time_give_the_same(tiny_image, monkeypatch):
    latents = make_latents(5)
    whole = correspondence(tiny_image, latents, noise="per_frame")
    monkeypatch.setattr(module, "FRAMES_AT_ONCE", 2)
    parts = correspondence(tiny_image, latents, noise="per_frame")
    assert torch.equal(parts.forward, whole.forward)
    assert torch.equal(parts.backward, whole.backward)


@pytest.mark.parametrize("numbers", [{"seed": 1}, {"ensemble": 4}, {"noise": "per_frame"}, {"timestep": 900}])
def test_every_number_matters_and_a_seed_repeats(tiny_image, numbers):
    latents = make_latents(3)
    usual, got, again = (correspondence(tiny_image, latents, **n) for n in ({}, numbers, numbers))
    assert torch.equal(got.forward, again.forward)
    assert not torch.equal(got.forward, usual.forward)


def test_up_blocks_are_counted_from_the_last(tiny_image):
    names = [decoder_stage(tiny_image.denoiser, up_block).name for up_block in (1, 2, 3)]
    assert names == ["up_blocks.0", "up_blocks.1", "up_blocks.2"]
    two = type("Two", (), {"blocks": [b for b in tiny_image.denoiser.blocks if b.stage > 0], "name": "two"})()
    assert [decoder_stage(two, up_block).name for up_block in (1, 2, 3)] == [
        "up_blocks.1", "up_blocks.1", "up_blocks.2",
    ]  # fmt: skip


def test_the_similarity_of_each_match_is_kept_best_first(tiny_image):
    found = correspondence(tiny_image, make_latents(3), window=3)
    for table, cosine in zip((found.forward, found.backward), found.alike):
        assert cosine.shape == table.shape
        known = cosine[(table >= 0).all(-1)].float()
        assert -1.001 <= known.min() <= known.max() <= 1.001
        assert (known[:, :-1] >= known[:, 1:]).all()
        gray = cosines_as_pictures(cosine, found.grid)
        assert gray.shape == (2, found.grid[0], found.grid[1] * found.top_k, 3)
        back = gray[..., 0].reshape(cosine.shape) * 2 - 1
        torch.testing.assert_close(back[(table >= 0)], cosine[table >= 0].float().clamp(-1, 1), atol=1e-3, rtol=0)


def test_video_and_instruction_models_have_features_too(tiny, tiny_instruct):
    for backbone in (tiny, tiny_instruct):
        assert correspondence(backbone, make_latents(3)).frames == 3


def test_it_can_be_cancelled_and_leaves_nothing_behind(tiny_image):
    """The fixture compares processors and hooks."""

    class Cancel(Monitor):
        def progress(self, done, total, preview=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        correspondence(tiny_image, make_latents(3), monitor=Cancel())


@pytest.mark.parametrize(
    ("frames", "numbers", "match"),
    [
        (1, {}, "matching wants a clip of at least 2 frames, got 1"),
        (3, {"timestep": 1000}, r"want a timestep in 0\.\.999, got 1000"),
        (3, {"ensemble": 0}, "want 1 draw of the noise or more, got 0"),
        (3, {"noise": "none"}, "no noise 'none': want one of shared, per_frame"),
        (3, {"window": 8}, "the window must be odd"),
        (3, {"top_k": 0}, "want at least one match per token"),
        (3, {"up_block": 4}, "no up_block 4: want 1, 2 or 3, the last"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(tiny_image, frames, numbers, match):
    with pytest.raises(ValueError, match=match):
        correspondence(tiny_image, make_latents(frames), **numbers)


def test_a_model_without_a_decoder_is_refused():
    backbone = Gaussian()
    with pytest.raises(ValueError, match="'gaussian' has no decoder stages"):
        correspondence(backbone, backbone.sample())


# ---- pictures -------------------------------------------------------------------------------------------------------


def walking(frames=4, grid=(3, 4)):
    """Everything moves one place to the right; the second match is one below the best."""
    n = grid[0] * grid[1]
    right, left = (torch.arange(n) + 1) % n, (torch.arange(n) - 1) % n
    tables = [torch.stack([t, (t + grid[1]) % n], -1).int().expand(frames - 1, -1, -1) for t in (right, left)]
    return Correspondence(*tables, grid, 0, 9, "model")


def colored(picture, color):
    """(top, left) of the cells of a 3x4 grid whose border has a color."""
    same = (picture - torch.tensor(color)).abs().amax(-1) < 1e-6
    cells = same.unflatten(0, (3, -1)).unflatten(2, (4, -1))
    return cells[:, 0].any(2).nonzero().tolist()


def test_matches_are_drawn_where_they_are():
    frames = torch.full((4, 12, 16, 3), 0.5)
    pictures = match_frames(walking(), frames, [(0.4, 0.1)], frame=1)
    assert pictures.shape == (4, 264, 352, 3)
    assert colored(pictures[1], module.POINT_COLOR) == [[0, 1]]
    for frame, column in ((0, 0), (2, 2), (3, 3)):
        assert colored(pictures[frame], module.RANK_COLORS[0]) == [[0, column]]
        assert colored(pictures[frame], module.RANK_COLORS[1]) == [[1, column]]
    assert torch.equal(frames, torch.full_like(frames, 0.5))


def test_points_are_read_from_text():
    assert parse_points("0.5 0.25", (8, 8)) == [(0.5, 0.25)]
    assert parse_points(" 0,1; .5, 0.75 ;", (8, 8)) == [(0.0, 1.0), (0.5, 0.75)]


@pytest.mark.parametrize("text", ["0.5", "a b", "0.1 0.2 0.3", "0.1 0.2; 0.3"])
def test_text_that_is_no_points_is_refused(text):
    with pytest.raises(ValueError, match="want points as 'x y; x y'"):
        parse_points(text, (8, 8))


@pytest.mark.parametrize(
    ("frames", "points", "frame", "match"),
    [
        (3, [(0, 0)], 0, "is for 4 frames, and there are 3 pictures"),
        (4, [], 0, "want points with x and y in 0..1"),
        (4, [(0.5, 1.5)], 0, "want points with x and y in 0..1"),
        (4, [(0, 0)], 4, "want a frame from 0 to 3"),
    ],
)
def test_pictures_and_points_that_do_not_fit_are_refused(frames, points, frame, match):
    with pytest.raises(ValueError, match=match):
        match_frames(walking(), torch.zeros(frames, 12, 16, 3), points, frame)


def test_points_are_read_as_json_of_pixels_too():
    assert parse_points('[{"x": 0, "y": 3}, {"x": 7, "y": 0}]', (4, 8)) == [(0.0625, 0.875), (0.9375, 0.125)]
    with pytest.raises(ValueError, match="in pixels"):
        parse_points('[{"x": 0}]', (4, 8))


def test_a_table_survives_as_a_picture_of_8_bits():
    table = torch.tensor([-1, 0, 1, 254, 255, 256, 65535, 65536, 70001, 128, 129, 300], dtype=torch.int32)
    pictures = as_pictures(table.view(1, 6, 2), (2, 3))
    assert pictures.shape == (1, 2, 6, 3)
    red, green, blue = (255.0 * pictures).clamp(0, 255).to(torch.uint8).long().view(-1, 3).T  # as ComfyUI saves it
    assert (red + 256 * green + 65536 * blue).tolist() == [0xFFFFFF, *table[1:].tolist()]
