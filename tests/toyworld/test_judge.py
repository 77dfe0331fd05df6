"""The small CLIP: how it is trained, and what the shipped one knows."""

from dataclasses import replace

import pytest
import torch

from weft.backbones.memory import PlainMemory
from weft.measure.clip_direction import best, direction_of, scores
from weft.tests.conftest import ROOT
from weft.toyworld import judge, world
from weft.toyworld.training import Recipe
from weft.vision.clip import load_clip

WEIGHTS = ROOT / "toyworld" / "weights"
CPU = PlainMemory("cpu")
MEGABYTE = 2**20


def generator(seed=4321):
    return torch.Generator().manual_seed(seed)


def frames(clips):
    """[n, H, W, 3]: the first of each clip."""
    return world.render(replace(clips, center=clips.center[:, :1]))[0][:, 0].movedim(1, -1)


# ---- what the shipped one knows -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    return load_clip(WEIGHTS / "clip", memory=CPU)


def test_it_is_small():
    assert sum(f.stat().st_size for f in (WEIGHTS / "clip").iterdir()) < 3 * MEGABYTE


def test_held_out_frames_find_their_captions(shipped):
    clips = world.draw(64, generator())
    captions = world.captions(clips)
    fit = shipped.embed_pictures(frames(clips)) @ shipped.embed_texts(captions).T
    assert sum(captions[k] == c for k, c in zip(fit.argmax(1).tolist(), captions)) >= 54


@pytest.mark.parametrize("kind", ["color", "shape", "background"])
def test_the_direction_finds_the_edit_among_others(shipped, kind):
    """Among an edit to a third value, one of another attribute, and none."""
    g, right = generator(), 0
    source = world.draw(24, g)
    true = world.edit(source, g, (kind,))
    count, old, new = world.CHOICES[kind], getattr(source, kind), getattr(true, kind)
    third = (new + 1 + ((new + 1) % count == old)) % count  # neither what it was nor what it should be
    another = world.edit(source, g, ("color" if kind == "shape" else "shape",))
    pictures = torch.stack([frames(c) for c in (replace(source, **{kind: third}), another, source, true)], 1)
    for i in range(len(source)):
        direction = direction_of(shipped, *(world.captions(clips[i : i + 1])[0] for clips in (source, true)))
        found = scores(shipped, pictures[i, 2:3], pictures[i], direction)
        assert found[2] == -1
        right += best(found) == 3
    assert right >= 21


# ---- how it is trained ----------------------------------------------------------------------------------------------


def test_what_training_writes_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "BATCH", 8)
    judge.train_judge(Recipe(steps=2, peak_rate=1e-3, warmup=1), tmp_path / "runs", tmp_path / "out")
    average = torch.load(tmp_path / "runs" / "clip.pt", weights_only=True)["average"]
    model = load_clip(tmp_path / "out" / "clip", memory=CPU)
    for parameter, shadow in zip(model.model.parameters(), average, strict=True):
        assert torch.equal(parameter, shadow.half().float())


def test_training_sees_what_the_folder_says(tmp_path, monkeypatch):
    """Pixels and tokens are those that the loaded folder makes of the same pictures and texts."""
    batch, seen, judged = judge.draw_groups(2, generator()), [], judge.losses_of
    monkeypatch.setattr(judge, "draw_groups", lambda *_: batch)
    monkeypatch.setattr(judge, "worn", lambda pictures, _: pictures)
    monkeypatch.setattr(judge, "worded", lambda captions, _: [(c, c) for c in captions])
    monkeypatch.setattr(judge, "losses_of", lambda logits, said: seen.append(logits.detach()) or judged(logits, said))
    judge.train_judge(Recipe(steps=1, peak_rate=1e-12, ema=0), tmp_path / "runs", tmp_path / "out")
    clip = load_clip(tmp_path / "out" / "clip", memory=CPU)
    near = clip.embed_pictures(batch[0].movedim(1, -1)) @ clip.embed_texts(batch[1]).T
    cosines = seen[0] / clip.model.logit_scale.exp()
    assert (near - cosines).abs().max() < 0.1 * cosines.std()


@pytest.mark.parametrize(
    ("two", "wanted"),
    [
        (0, [{1}, {2}, {5, 6}]),  # "a red square on a teal striped background"
        (1, [{1, 2}, {5, 6}, {9, 10}]),  # "a red square and a blue circle on a teal striped background"
    ],
    ids=["one", "two"],
)
def test_groups_differ_in_what_is_edited(two, wanted, monkeypatch):
    monkeypatch.setattr(judge, "TWO", two)
    pictures, captions = judge.draw_groups(6, generator())
    words = [caption.split() for caption in captions]
    assert pictures.shape == (24, 3, world.SIZE, world.SIZE)
    for scene in range(6):
        first, *edits = words[scene::6]
        for edit, places in zip(edits, wanted):
            changed = {i for i, (a, b) in enumerate(zip(first, edit)) if a != b}
            assert changed
            assert changed <= places
    corner = pictures[:, :, 0, 0].reshape(4, 6, 3)
    assert torch.equal(corner[0], corner[1])
    assert torch.equal(corner[0], corner[2])
    assert not torch.equal(corner[0], corner[3])


def test_a_batch_is_worded_one_way():
    captions = ["a red square on a teal striped background", "a blue cross on a gray plain background"]
    g, short = generator(), 0
    for _ in range(60):
        texts = judge.worded(captions, g)
        said = [s for _, s in texts]
        assert said in (captions, ["a red square", "a blue cross"])
        assert all(t.removesuffix(s) in judge.PREFIXES and t.endswith(s) for t, s in texts)
        short += said != captions
    assert 5 <= short <= 25


def test_wear_is_small_and_not_the_same_for_all():
    pictures, _ = judge.draw_groups(8, generator())
    worn = judge.worn(pictures, generator())
    off = (worn - pictures).abs().mean((1, 2, 3))
    assert 0 <= worn.min() <= worn.max() <= 1
    assert 0 < off.min() < off.max() < 0.08


def test_texts_that_say_the_same_are_all_right():
    logits = torch.tensor([[5.0, 5.0, -5.0], [5.0, 5.0, -5.0], [-5.0, -5.0, 5.0]])
    same = judge.losses_of(logits, ["a", "a", "b"])
    assert same["right_text"] == 1
    assert same["loss"].item() == pytest.approx(torch.tensor(2.0).log().item() * 2 / 3, abs=1e-3)
    assert judge.losses_of(logits, ["a", "c", "b"])["right_text"] == pytest.approx(2 / 3)


def test_the_loss_by_hand_is_symmetric():
    logits = torch.tensor([[2.0, 0.0], [1.0, -1.0]])
    rows = [-torch.log_softmax(logits, 1)[i, i] for i in range(2)]
    columns = [-torch.log_softmax(logits, 0)[i, i] for i in range(2)]
    want = (sum(rows) / 2 + sum(columns) / 2) / 2
    assert judge.losses_of(logits, ["a", "b"])["loss"].item() == pytest.approx(want.item())
