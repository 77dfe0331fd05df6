"""What a viewer is shown of the STR score, against the paper's row of it."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from weft.backbones.diffusers.loading import load_backbone
from weft.backbones.memory import PlainMemory
from weft.engine.inversion import invert
from weft.methods.str_inputs import site_pairs
from weft.methods.str_view import look, score_heat
from weft.tests.methods.test_str_match import make_step, maps, omega
from weft.tests.tiny import FRAMES, SIZE, make_folder, make_latents


@pytest.fixture
def trajectory(tiny):
    return invert(tiny, make_latents(), tiny.text.embed("a red square"), steps=3)


def test_the_score_of_a_point_is_the_papers_row_of_omega(tmp_path):
    """On a model with a single pair of sites, so that nothing is averaged."""
    blocks = ("DownBlock3D", "DownBlock3D", "DownBlock3D")
    backbone = load_backbone(make_folder(tmp_path / "mid", blocks=blocks), memory=PlainMemory("cpu"))
    ((spatial, temporal),) = site_pairs(backbone.denoiser)
    step = make_step(backbone, level=2)
    label, prompt = step.trajectory.schedule.label(2), step.trajectory.prompt
    with torch.no_grad():
        s, t = (maps(backbone, step.source_latents(), label, prompt, x).mean(1) for x in (spatial, temporal))
    token = 1 * 3 + 2  # of the 2x3 cells the point (0.9, 0.6) falls into the last
    rows = omega(s, t, 1)[:, token].view(FRAMES, 1, 2, 3)
    rows = F.interpolate(rows / rows.amax((2, 3), keepdim=True), SIZE, mode="bilinear")[:, 0]
    got = score_heat(backbone, step.trajectory, (0.9, 0.6), 2)
    torch.testing.assert_close(got, rows / rows.amax((1, 2), keepdim=True), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("point", [(0, 0), (1, 1), (0.3, 0.8)])
@pytest.mark.parametrize("options", [{}, {"levels": "all", "neighbours": 2, "noise": 1.0}, {"noise": 0.0}])
def test_a_heat_map_is_frames_of_the_clips_size(tiny, trajectory, point, options):
    frames = look(tiny, trajectory, point, **options).painted
    assert frames.shape == (FRAMES, 12, 20, 3)
    assert frames.dtype == torch.float32
    assert 0 <= frames.min() <= frames.max() <= 1
    assert (frames[:, int(point[1] * 11), int(point[0] * 19)] == 1).all()


def test_each_frame_of_the_heat_reaches_one(tiny, trajectory):
    heat = score_heat(tiny, trajectory, (0.2, 0.9), 2)
    assert heat.shape == (FRAMES, *SIZE)
    assert torch.equal(heat.amax((1, 2)), torch.ones(FRAMES))
    assert heat.min() >= 0
    assert not torch.equal(heat, score_heat(tiny, trajectory, (0.9, 0.1), 2))


def test_what_a_viewer_is_shown_is_the_score_of_each_resolution_at_some_levels_of_both_clips(tiny, trajectory):
    point, source = (0.3, 0.8), tiny.codec.unscale(trajectory.at(0))
    seen = look(tiny, trajectory, point, noise=0.5, edit=(source, trajectory.prompt), levels="all")
    frames, rows, columns = seen.heat.shape
    (h, w), count = SIZE, 2 * len(seen.resolutions)
    assert (frames, rows, columns) == (FRAMES, count * h, len(seen.levels) * w)
    tiles = seen.heat.view(FRAMES, count, h, len(seen.levels), w)
    assert torch.equal(tiles.amax((2, 4)), torch.ones(FRAMES, count, len(seen.levels)))
    of_source, of_edit = tiles.chunk(2, 1)
    torch.testing.assert_close(of_edit, of_source, rtol=1e-3, atol=1e-3)  # the source is taken for its own edit
    assert seen.levels[seen.first] == max(1, round(0.5 * trajectory.schedule.steps))
    assert torch.equal(seen.painted, look(tiny, trajectory, point, noise=0.5, levels="all").painted)
    other = look(tiny, trajectory, point, noise=0.5, edit=(source.flip(0), trajectory.prompt), levels="all")
    assert torch.equal(other.heat[:, : rows // 2], seen.heat[:, : rows // 2])
    assert not torch.allclose(other.heat[:, rows // 2 :], seen.heat[:, rows // 2 :], atol=0.05)
    assert list(look(tiny, trajectory, point).clips) == ["source"]


def test_an_edit_of_another_size_is_refused_before_anything_is_evaluated(tiny, trajectory, monkeypatch):
    monkeypatch.setattr(type(tiny.denoiser), "session", lambda *_, **__: pytest.fail("evaluated"))
    short = tiny.codec.unscale(trajectory.at(0))[:-1]
    with pytest.raises(ValueError, match="the edit's latents are"):
        look(tiny, trajectory, (0.3, 0.8), edit=(short, trajectory.prompt))


@pytest.mark.parametrize("bad", [{"x": -0.1}, {"y": 1.2}, {"noise": 2.0}, {"x": float("nan")}])
def test_a_point_outside_the_frame_is_refused(tiny, trajectory, bad):
    x, y, noise = ({"x": 0.5, "y": 0.25, "noise": 0.75} | bad).values()
    with pytest.raises(ValueError, match=rf"want x, y and noise in 0\.\.1, got {x}, {y} and {noise}"):
        look(tiny, trajectory, (x, y), noise=noise)


def test_a_heat_map_wants_the_model_of_the_trajectory(tiny, trajectory):
    foreign = replace(trajectory, model="0123")
    with pytest.raises(ValueError, match="inverted with another model than 'tiny'"):
        look(tiny, foreign, (0.5, 0.5))
