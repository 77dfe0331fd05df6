"""The small SAM and the small detector: how they are trained, and what the shipped ones know."""

import logging

import pytest
import torch

from weft.backbones.memory import PlainMemory
from weft.tests.conftest import ROOT
from weft.toyworld import detector, pointing, sam, scenes, world
from weft.toyworld.training import Recipe
from weft.vision.detector import load_detector
from weft.vision.find import find
from weft.vision.prompts import read_prompts
from weft.vision.sam import load_segmenter
from weft.vision.segment import segment
from weft.vision.track import track

WEIGHTS = ROOT / "toyworld" / "weights"
CPU = PlainMemory("cpu")
MEGABYTE = 2**20


def generator(seed=4321):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def clips():
    """8 held-out clips, their frames and masks."""
    drawn = world.draw(8, generator())
    video, alpha = world.render(drawn)
    return drawn, video.movedim(2, -1), alpha > 0.5


# ---- what the shipped ones know -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    return load_segmenter(WEIGHTS / "sam" / "sam.safetensors", memory=CPU)


def test_it_is_small():
    for name in ("sam", "detector"):
        assert sum(f.stat().st_size for f in (WEIGHTS / name).rglob("*") if f.is_file()) < 6 * MEGABYTE


def test_one_click_gives_the_sprite_and_the_track_keeps_it(shipped, clips):
    clicked, tracked = [], []
    for frames, truth in zip(*clips[1:]):
        x, y = sam.pick(truth[:1], generator())[0].tolist()
        mask = segment(shipped, frames, read_prompts(f"{x},{y}")).masks
        clicked.append(sam.iou(mask.bool(), truth[:1]))
        tracked.append(sam.iou(track(shipped, frames, mask).masks.bool(), truth).mean())
    assert torch.stack(clicked).mean() >= 0.85
    assert torch.stack(tracked).mean() >= 0.80


def test_permuting_clicks_permutes_masks(shipped):
    """Of two sprites, whichever is clicked first."""
    _, pictures, seen = pointing.held_out(16)
    right = []
    for picture, things in zip(pictures, seen):
        clicks = sam.inmost(things).tolist()
        masks = [segment(shipped, picture[None], read_prompts(f"{x},{y}")).masks.bool() for x, y in clicks]
        again = [segment(shipped, picture[None], read_prompts(f"{x},{y}")).masks.bool() for x, y in reversed(clicks)]
        assert all(map(torch.equal, masks, reversed(again)))
        own, other = (torch.stack([sam.iou(m, t[None]) for m, t in zip(masks, of)]) for of in (things, things.flip(0)))
        right.append((own > other).all())
    assert torch.stack(right).float().mean() >= 0.9


def test_boxes_and_negative_points_count(shipped, clips):
    _, frames, truth = (c[0] for c in clips)
    box = sam.box_of(truth[:1])[0].tolist()
    boxed = segment(shipped, frames, read_prompts(boxes=",".join(map(str, box)))).masks
    assert sam.iou(boxed.bool(), truth[:1]) > 0.85
    x, y = sam.pick(truth[:1], generator())[0].tolist()
    off_x, off_y = sam.pick(~truth[:1], generator())[0].tolist()
    both = segment(shipped, frames, read_prompts(f"{x},{y}", f"{off_x},{off_y}")).masks
    assert sam.iou(both.bool(), truth[:1]) > 0.85


def test_a_sprite_that_goes_is_lost(shipped, clips, caplog):
    drawn, frames, truth = (c[:1] for c in clips)
    frames, empty = frames[0].clone(), world.render_background(drawn)[0].movedim(0, -1)
    frames[4:] = empty
    with caplog.at_level(logging.WARNING):
        tracked = track(shipped, frames, truth[0, :1].float())
    assert tracked.lost == (4, 5, 6, 7)
    assert "LOST" in caplog.text


def test_a_text_finds_the_sprite(clips):
    model = load_detector(WEIGHTS / "detector", memory=CPU)
    overlaps = []
    for drawn, frames, truth in zip(range(8), *clips[1:]):
        what = " ".join(world.captions(clips[0][drawn : drawn + 1])[0].split()[:3])
        (best,) = find(model, frames, what).at[0]
        left, top, right, bottom = (round(v) for v in best.box)
        box = torch.zeros_like(truth[0])
        box[top:bottom, left:right] = True
        true = sam.box_of(truth[:1])[0].int().tolist()
        wanted = torch.zeros_like(box)
        wanted[true[1] : true[3] + 1, true[0] : true[2] + 1] = True
        overlaps.append(sam.iou(box, wanted))
    assert torch.stack(overlaps).mean() >= 0.7


def test_another_text_scores_less(clips):
    model = load_detector(WEIGHTS / "detector", memory=CPU)
    margins = []
    for i, frames in enumerate(clips[1]):
        article, color, shape = world.captions(clips[0][i : i + 1])[0].split()[:3]
        other = next(c for c in world.COLORS if c != color)
        right, wrong = (model.find(frames[0], (f"{article} {c} {shape}",), 0.0)[1] for c in (color, other))
        margins.append(right - wrong)
    assert sum(m > 0 for m in margins) >= 7


# ---- how they are trained -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "load"),
    [
        (sam.train_sam, lambda out: load_segmenter(out / "sam" / "sam.safetensors", memory=CPU).sam),
        (detector.train_detector, lambda out: load_detector(out / "detector", memory=CPU).model),
    ],
    ids=["sam", "detector"],
)
def test_what_training_writes_loads(train, load, tmp_path, monkeypatch):
    monkeypatch.setattr(sam, "BATCH", dict.fromkeys(sam.BATCH, 4))
    monkeypatch.setattr(detector, "BATCH", 4)
    train(Recipe(steps=2, peak_rate=1e-3, warmup=1), tmp_path / "runs", tmp_path / "out")
    (run,) = (tmp_path / "runs").glob("*.pt")
    average = torch.load(run, weights_only=True)["average"]
    for parameter, shadow in zip(load(tmp_path / "out").parameters(), average, strict=True):
        assert torch.equal(parameter, shadow.half().float())


def test_pairs_are_neighbours_of_one_sprite():
    video, sprites, stale, ground = sam.draw_pairs(64, generator())
    assert video.shape == (64, 3, world.SIZE, world.SIZE)
    moved = (_middle(sprites) - _middle(stale)).norm(dim=1)
    assert 0 < moved.median() < 12
    assert torch.stack([sprites, stale]).sum((2, 3)).min() >= sam.LEAST
    assert not (sprites & ground).any()
    both = (~(sprites | ground)).sum((1, 2)) > sam.LEAST  # a second sprite is there
    assert both.float().mean() == pytest.approx(2 / 3, abs=0.15)
    for picture, sprite in zip(video, sprites):
        away = (picture[:, sprite].T[:, None] - world.COLOR_VALUES).abs().amax(2)  # [pixels, colors]
        assert (away < 1e-6).any(0).sum() == 1, "a sprite has one color"


def _middle(masks):
    return torch.stack([mask.nonzero().float().mean(0) for mask in masks])


def test_boxes_are_tight():
    masks = torch.rand(20, 9, 9, generator=generator()) > 0.9
    masks[:, 4, 5] = True
    for mask, (left, top, right, bottom) in zip(masks, sam.box_of(masks).int().tolist()):
        y, x = mask.nonzero().T
        assert (x.min(), y.min(), x.max(), y.max()) == (left, top, right, bottom)


def test_clicks_are_where_they_should_be():
    _, sprites, stale, _ = sam.draw_pairs(64, generator())
    points, labels, boxes = sam.ask_click(sprites, generator())
    rows, (x, y) = torch.arange(64), points.long().movedim(-1, 0)
    assert boxes is None
    assert sprites[rows, y[:, 0], x[:, 0]].all()
    assert not sprites[rows, y[:, 1], x[:, 1]].any()
    assert (labels[:, 0] == 1).all()
    assert {*labels[:, 1].tolist()} == {0, -1}
    points, labels, boxes = sam.ask_box(sprites, stale, generator())
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    assert 0 <= boxes.min() <= boxes.max() <= world.SIZE - 1
    assert {*labels[:, 0].tolist()} == {1, -1}
    tracked = labels[:, 0] == 1
    x, y = points[:, 0].long().unbind(1)
    assert stale[rows, y, x][tracked].all()
    assert sprites[rows, y, x][tracked].float().mean() > 0.8  # the sprite has not gone far


def test_losses_by_hand():
    logits, truth = torch.tensor([[[[2.0, -1.0]]]]), torch.tensor([[[[1.0, 1.0]]]])
    p = logits.sigmoid().flatten()
    want = ((1 - p) ** 2 * -p.log()).mean()
    assert sam.focal(logits, truth).item() == pytest.approx(want.item())
    assert sam.dice(logits, truth).item() == pytest.approx(1 - (2 * p.sum() + 1).item() / (p.sum() + 3).item())
    a, b = torch.tensor([[[True, True, False]], [[False] * 3]]), torch.tensor([[[False, True, True]], [[False] * 3]])
    assert sam.iou(a, b).tolist() == pytest.approx([1 / 3, 1])


def test_the_best_of_three_and_the_single_answer_are_what_is_trained():
    truth = torch.zeros(1, 8, 8, dtype=torch.bool)
    truth[:, 2:5, 2:5] = True
    right, wrong = torch.where(truth, 9.0, -9.0), torch.where(truth, -9.0, 9.0)
    logits = torch.stack([wrong, wrong, right, wrong], 1).requires_grad_()
    losses = sam.losses_of(logits, torch.zeros(1, 4), truth, alone=True)
    losses["loss"].backward()
    single, first, best, last = logits.grad[0].abs().amax((-2, -1)).tolist()
    assert single > 1e-3
    assert first == last == 0
    assert best >= 0
    assert losses["iou"] == 0


def test_overlaps_of_boxes():
    a = torch.tensor([0.5, 0.5, 0.4, 0.4])
    b = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.7, 0.5, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1]])
    overlap, generalised = detector.overlaps(a, b)
    assert overlap.tolist() == pytest.approx([1, 1 / 3, 0])
    around = 0.65 * 0.65  # of the first and the last
    assert generalised.tolist() == pytest.approx([1, 1 / 3, -(around - 0.17) / around], abs=1e-5)


def test_texts_name_the_sprites_that_are_there_and_others_that_are_not():
    g, seen = generator(), set()
    for _ in range(12):
        drawn, _, _ = detector.draw_scenes(20, g)
        texts, right = detector.texts_for(drawn, g)
        per_scene = len(texts) // 20
        assert right.shape == (20, per_scene, 2)
        for i in range(20):
            asked = texts[i * per_scene : (i + 1) * per_scene]
            assert len(set(asked)) == per_scene
            for t, names in zip(asked, right[i]):
                words = {*t.split()} & {*world.COLORS, *world.SHAPES}
                for k in range(2):
                    own = {*scenes.names(drawn, k)[i].split()[1:]}
                    assert names[k] == (words <= own and drawn.shown[i, k])
                seen.add(len(words))
        assert torch.equal(right.any(1), drawn.shown)
    assert seen == {1, 2}


def test_each_sprite_has_a_patch_of_its_own_and_the_texts_that_name_it():
    sprites = torch.zeros(1, 2, world.SIZE, world.SIZE, dtype=torch.bool)
    sprites[0, 0, 0:24, 0:24] = sprites[0, 1, 40:64, 32:64] = True
    right = torch.tensor([[[True, False], [False, True], [False, False]]])
    boxes = torch.full((1, 64, 4), 0.5)
    boxes[0, 9], boxes[0, 46] = detector.boxes_of(sprites[0])
    perfect = torch.full((1, 64, 3), -20.0)
    perfect[0, 9, 0] = perfect[0, 46, 1] = 20
    assert detector.losses_of(perfect, boxes, sprites, right)["loss"] < 1e-6
    swapped = perfect.clone()
    swapped[0, [9, 46]] = perfect[0, [46, 9]]
    assert detector.losses_of(swapped, boxes, sprites, right)["loss"] > 1
    gone = sprites.clone()
    gone[:, 1] = False
    assert detector.losses_of(perfect, boxes, gone, right)["loss"] > 1, "what is not there was found"
    quiet = perfect.clone()
    quiet[0, 46, 1] = -20
    assert detector.losses_of(quiet, boxes, gone, right)["loss"] < 1e-6
