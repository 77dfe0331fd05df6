import numpy as np
import pytest
import torch
from PIL import Image

from weft.toyworld import world
from weft.toyworld.report import bootstrap_interval, contact_sheet, side_by_side


def draw(n, seed=4321, **options):
    return world.draw(n, torch.Generator().manual_seed(seed), **options)


def test_the_interval_is_that_of_the_mean():
    values = torch.randn(400) * 2 + 5
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std().item() / 20
    assert low == pytest.approx(values.mean().item() - half, abs=0.05)
    assert high == pytest.approx(values.mean().item() + half, abs=0.05)
    narrow = bootstrap_interval(values, level=0.5)
    assert low < narrow[0] < values.mean() < narrow[1] < high


def test_the_interval_is_repeatable_and_follows_its_seed():
    values = torch.rand(20)
    assert bootstrap_interval(values) == bootstrap_interval(values.tolist())
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)
    assert bootstrap_interval([3.0, 3.0]) == (3.0, 3.0)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    hits = 0
    for seed in range(200):
        values = torch.randn(40, generator=torch.Generator().manual_seed(seed))
        low, high = bootstrap_interval(values, draws=500, level=0.8)
        hits += low < 0 < high
    assert 0.7 < hits / 200 < 0.88


def test_the_interval_refuses_nonsense():
    with pytest.raises(ValueError, match=r"row of values, got shape \[0\]"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match=r"row of values, got shape \[2, 2\]"):
        bootstrap_interval(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="level between 0 and 1"):
        bootstrap_interval([1.0], level=95)


def test_a_contact_sheet_shows_its_frames(tmp_path):
    clips = world.render(draw(2))[0]
    path = tmp_path / "new" / "sheet.png"
    contact_sheet([clips[0], clips[1, :5].permute(0, 2, 3, 1)], path, scale=2)
    sheet = torch.from_numpy(np.array(Image.open(path)))
    assert sheet.shape == (2 * 130 + 2, 8 * 130 + 2, 3)
    shown = sheet[132:260, 262:390].permute(2, 0, 1)[:, ::2, ::2]
    assert torch.equal(shown, (clips[1, 2] * 255).round().byte())
    assert (sheet[132:260, 5 * 130 + 2 :] == 255).all(), "a short clip leaves white behind"


def test_labels_are_written_above_their_row(tmp_path):
    clips = list(world.render(draw(2))[0])
    contact_sheet(clips, tmp_path / "plain.png", scale=1)
    contact_sheet(clips, tmp_path / "labels.png", scale=1, labels=["", "a red square"])
    plain, labels = Image.open(tmp_path / "plain.png"), Image.open(tmp_path / "labels.png").convert("L")
    assert labels.height - plain.height == 2 * 14
    assert labels.crop((0, 2, labels.width, 16)).getextrema() == (255, 255)
    assert labels.crop((0, 82, labels.width, 96)).getextrema()[0] < 128


def test_a_contact_sheet_refuses_what_does_not_fit(tmp_path):
    clip = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match="1 labels for 2 rows"):
        contact_sheet([clip, clip], tmp_path / "x.png", labels=["one"])
    with pytest.raises(ValueError, match="one picture size"):
        contact_sheet([clip, torch.zeros(2, 3, 9, 9)], tmp_path / "x.png")
    with pytest.raises(ValueError, match="one picture size"):
        contact_sheet([], tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"want a clip .* got \[3, 8, 8\]"):
        contact_sheet([clip[0]], tmp_path / "x.png")


def test_clips_play_side_by_side(tmp_path):
    clips = world.render(draw(2))[0]
    path = tmp_path / "new" / "both.gif"
    side_by_side([clips[0], clips[1, :5]], path, ["one", "two"], scale=2, fps=8)
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.info["loop"], gif.info["duration"]) == (5, 0, pytest.approx(125, abs=5))
        gif.seek(3)
        page = torch.from_numpy(np.array(gif.convert("RGB")))
    assert page.shape == (22 + 128 + 6, 2 * 134 + 6, 3)
    shown = page[22:150, 140:268].permute(2, 0, 1)[:, ::2, ::2] / 255
    assert (shown - clips[1, 3]).abs().mean() < 0.03, "a GIF has 256 colors"
    with pytest.raises(ValueError, match="1 labels for 2 rows"):
        side_by_side(clips, path, ["one"])
