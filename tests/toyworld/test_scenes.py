"""Scenes of several sprites: the renderer is the truth, so what it draws, hides and edits is held to the pixel."""

from dataclasses import fields, replace

import pytest
import torch

from weft.toyworld import scenes, sheets, text, world
from weft.toyworld.dataset import CLIPS_SEED


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(n=64, seed=0, **options):
    return scenes.draw(n, generator(seed), **options)


def two(n=64, seed=0, **options):
    return draw(n, seed, counts=(2,), **options)


def same(a, b):
    return {f.name for f in fields(a) if torch.equal(getattr(a, f.name), getattr(b, f.name))}


EVERYTHING = {f.name for f in fields(scenes.Scenes)}


def test_a_seed_gives_the_same_scenes_and_a_held_out_one_others():
    assert same(draw(), draw()) == EVERYTHING
    training, held_out = two(50, CLIPS_SEED), two(50, 4321)
    assert (training.center[:, None] - held_out.center[None]).abs().amax((2, 3, 4)).min() > 0.1


def test_a_scene_with_one_sprite_is_the_clip_of_the_world_to_the_bit():
    clips = world.draw(24, generator())
    second = replace(world.draw(24, generator(1)), color=(clips.color + 1) % len(world.COLORS))
    made = scenes.of_clips(clips, second)
    (video, masks), (want, alpha) = scenes.render(made), world.render(clips)
    assert torch.equal(video, want)
    assert torch.equal(masks[:, 0], alpha)
    assert not masks[:, 1].any()
    assert scenes.captions(made) == world.captions(clips)


def test_every_count_occurs_and_nothing_is_drawn_of_what_is_not_shown():
    drawn = draw(60)
    assert drawn.count.unique().tolist() == [0, 1, 2]
    video, masks = scenes.render(drawn)
    assert torch.equal(masks.flatten(2).any(2), drawn.shown)
    empty = drawn.count == 0
    ground = world.render_background(drawn.sprite(0))[:, None].expand_as(video)
    assert torch.equal(video[empty], ground[empty])


def test_a_pixel_is_the_sprite_that_is_seen_there():
    drawn = two(24)
    video, masks = scenes.render(drawn)
    assert (masks.sum(1) <= 1 + 1e-6).all()
    ground = world.render_background(drawn.sprite(0))[:, None].expand_as(video).movedim(2, -1)
    pixels = video.movedim(2, -1)
    for k in range(2):
        color = world.COLOR_VALUES[drawn.color[:, k]][:, None, None, None].expand_as(pixels)
        seen = masks[:, k] == 1
        torch.testing.assert_close(pixels[seen], color[seen])
    assert torch.equal(pixels[masks.sum(1) == 0], ground[masks.sum(1) == 0])


def test_the_front_sprite_hides_the_other_and_is_whole():
    drawn = two(32, kinds=("cross",))
    masks, whole, rows = scenes.visible(drawn), scenes.whole(drawn), torch.arange(32)
    front, behind = drawn.front, 1 - drawn.front
    assert torch.equal(masks[rows, front], whole[rows, front])
    hidden = whole[rows, behind] * whole[rows, front]
    torch.testing.assert_close(masks[rows, behind] + hidden, whole[rows, behind])
    assert hidden.flatten(1).any(1).all()


def test_sprites_that_cross_meet_between_the_ends_and_those_apart_do_not():
    gap = {}
    for kind in scenes.KINDS:
        drawn = two(200, kinds=(kind,))
        distance = (drawn.center[:, 0] - drawn.center[:, 1]).norm(dim=-1) / drawn.radius.sum(1)[:, None]
        gap[kind] = distance
    ends = gap["cross"][:, [0, -1]].amin(1)
    assert (ends > gap["cross"].amin(1)).all()
    assert ends.median() > 0.9
    assert (gap["cross"].amin(1) < 0.75).float().mean() > 0.95
    assert gap["apart"].amin(1).median() > 0.9
    assert (gap["apart"].amin(1) > 0.5).float().mean() > 0.95


def test_frames_are_chosen_scene_by_scene():
    drawn = two(5)
    frames = torch.tensor([[0, 3], [7, 7], [2, 1], [5, 4], [6, 0]])
    chosen, every = scenes.render(drawn.at(frames))[0], scenes.render(drawn)[0]
    for i, pair in enumerate(frames):
        assert torch.equal(chosen[i], every[i, pair])


def test_colors_differ_before_and_after_every_edit():
    drawn, g = two(300), generator(1)
    for edited in (drawn, scenes.change(drawn, g, 0), scenes.change(scenes.change(drawn, g, 0), g, 1)):
        assert (edited.color[:, 0] != edited.color[:, 1]).all()
        assert edited.color.min() >= 0
        assert edited.color.max() < len(world.COLORS)
    reached = scenes.change(drawn, g, 0, ("color",)).color[:, 0]
    assert reached.unique().tolist() == list(range(len(world.COLORS)))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("attributes", [("shape",), ("color",), ("shape", "color")])
def test_changing_one_sprite_leaves_the_other_and_the_background(which, attributes):
    before = two(24)
    after = scenes.change(before, generator(1), which, attributes)
    assert same(before, after) == EVERYTHING - {*attributes}
    for name in attributes:
        old, new = getattr(before, name), getattr(after, name)
        assert (old[:, which] != new[:, which]).all()
        assert torch.equal(old[:, 1 - which], new[:, 1 - which])
    (a, _), (b, _) = scenes.render(before), scenes.render(after)
    near = torch.maximum(*(scenes.whole(s)[:, which] for s in (before, after))) > 0
    assert torch.equal(a.movedim(2, -1)[~near], b.movedim(2, -1)[~near])


def test_both_change_into_targets_of_their_own():
    before, g = two(24), generator(1)
    after = scenes.change(scenes.change(before, g, 0), g, 1)
    assert same(before, after) == EVERYTHING - {"shape", "color"}
    assert (before.color != after.color).all()
    assert (before.shape != after.shape).all()


def test_what_is_removed_shows_what_was_behind_and_can_be_added_again():
    before = two(24)
    for which in (0, 1):
        after = scenes.remove(before, which)
        assert (after.count == 1).all()
        alone = world.render(before.sprite(1 - which))[0]
        assert torch.equal(scenes.render(after)[0], alone)
        assert same(scenes.add(after, which), before) == EVERYTHING
    bare = scenes.remove(scenes.remove(before, 0), 1)
    ground = world.render_background(before.sprite(0))[:, None]
    assert torch.equal(scenes.render(bare)[0], ground.expand(-1, world.FRAMES, -1, -1, -1))


@pytest.mark.parametrize("attributes", [("background",), ("pattern",), ("background", "pattern")])
def test_another_background_leaves_the_sprites(attributes):
    before = two(24)
    after = scenes.change_background(before, generator(1), attributes)
    assert same(before, after) == EVERYTHING - {*attributes}
    (a, masks), (b, same_masks) = scenes.render(before), scenes.render(after)
    assert torch.equal(masks, same_masks)
    seen = masks.amax(1) == 1
    torch.testing.assert_close(a.movedim(2, -1)[seen], b.movedim(2, -1)[seen])


def test_edits_that_cannot_be_made_say_why():
    one = draw(3, counts=(1,))
    with pytest.raises(ValueError, match="scene 0 does not show sprite 1"):
        scenes.remove(one, 1)
    with pytest.raises(ValueError, match="scene 0 already shows sprite 0"):
        scenes.add(one, 0)
    with pytest.raises(ValueError, match="does not show sprite 1"):
        scenes.change(one, generator(), 1)
    with pytest.raises(ValueError, match="no sprite 2: want 0 or 1"):
        scenes.remove(one, 2)
    with pytest.raises(ValueError, match=r"no attribute \['pattern'\]"):
        scenes.change(one, generator(), 0, ("pattern",))
    with pytest.raises(ValueError, match=r"no attribute \['color'\]"):
        scenes.change_background(one, generator(), ("color",))
    with pytest.raises(ValueError, match="counts of 0 to 2"):
        draw(2, counts=(3,))
    with pytest.raises(ValueError, match="same color"):
        scenes.of_clips(one.sprite(0), one.sprite(0))


def test_captions_name_what_is_shown_in_words_of_the_vocabulary(tmp_path):
    tokenizer, drawn = text.make_tokenizer(tmp_path), draw(90)
    colors, grounds = list(world.COLORS), list(world.BACKGROUNDS)
    for i, caption in enumerate(scenes.captions(drawn)):
        words = caption.split()
        assert tokenizer.tokenize(caption) == [word + text.END for word in words]
        assert len(words) + 2 <= text.MAX_TOKENS
        assert words[-4] == "a"
        assert words[-3:] == [grounds[drawn.background[i]], world.PATTERNS[drawn.pattern[i]], "background"]
        said = [w for w in words if w in (*world.COLORS, *world.SHAPES)]
        looks = zip(drawn.shown[i].tolist(), drawn.color[i].tolist(), drawn.shape[i].tolist())
        assert said == [w for shown, c, s in looks if shown for w in (colors[c], world.SHAPES[s])]
        assert words.count("and") == max(0, drawn.count[i] - 1)


def test_negatives_name_what_goes():
    before, g = two(20), generator(1)
    first, second = scenes.names(before, 0), scenes.names(before, 1)
    grounds = [" ".join(c.split()[-4:]) for c in scenes.captions(before)]
    assert scenes.negatives(before, scenes.remove(before, 1)) == second
    assert scenes.negatives(before, scenes.change(before, g, 0, ("color",))) == first
    both = scenes.change(scenes.change(before, g, 0), g, 1)
    assert scenes.negatives(before, both) == [f"{a} and {b}" for a, b in zip(first, second)]
    assert scenes.negatives(before, scenes.change_background(before, g)) == grounds
    alone = scenes.remove(before, 0)
    assert scenes.negatives(alone, scenes.add(alone, 0)) == [""] * 20


@pytest.mark.parametrize("kind", scenes.EDITS)
def test_the_measured_edits_change_words_and_pixels(kind):
    source, target = scenes.draw_edits(kind, 12, generator())
    assert all(a != b for a, b in zip(scenes.captions(source), scenes.captions(target)))
    assert all(scenes.negatives(source, target)) == (kind != "add")
    changes = (scenes.render(source)[0] - scenes.render(target)[0]).abs().flatten(1).amax(1)
    assert (changes > 0.25).all()
    assert torch.equal(source.center, target.center)


def test_the_sheets_are_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sheets, "FOLDER", tmp_path)
    sheets.main()
    assert {f.name for f in tmp_path.iterdir()} == {"scenes.png", "edits.png", "masks.png"}
    rows, labels = sheets.scene_rows()
    assert len(rows) == len(labels)
    assert not rows[1].any(), "a mask where nothing is shown"
