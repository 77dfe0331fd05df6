from dataclasses import fields

import pytest
import torch

from weft.toyworld import text, world
from weft.toyworld.dataset import CLIPS_SEED

GEOMETRY = ("radius", "phase", "orientation", "center")


def draw(n=64, seed=0, **options):
    return world.draw(n, torch.Generator().manual_seed(seed), **options)


def edit(clips, *attributes, seed=1):
    return world.edit(clips, torch.Generator().manual_seed(seed), attributes)


def same(a, b):
    return {f.name for f in fields(a) if torch.equal(getattr(a, f.name), getattr(b, f.name))}


def everything():
    return {f.name for f in fields(world.Clips)}


def test_a_seed_gives_the_same_clips():
    assert same(draw(), draw()) == everything()
    assert torch.equal(world.render(draw(4))[0], world.render(draw(4))[0])


def test_the_held_out_seed_gives_other_clips():
    training, held_out = draw(100, CLIPS_SEED), draw(100, 4321)
    assert not same(training, held_out)
    apart = (training.center[:, None] - held_out.center[None]).abs().amax((2, 3))
    assert apart.min() > 0.1, "a held-out path is a training path"


def test_every_value_of_every_attribute_occurs():
    clips = draw(400)
    for name, choices in world.CHOICES.items():
        assert getattr(clips, name).unique().tolist() == list(range(choices))


@pytest.mark.parametrize(
    "attributes", [("shape", "color"), ("color",), ("shape",), ("background",), ("pattern",), tuple(world.CHOICES)]
)
def test_an_edit_changes_what_it_names_and_nothing_else(attributes):
    before = draw()
    after = edit(before, *attributes)
    assert same(before, after) == everything() - set(attributes)
    for name in attributes:
        old, new = getattr(before, name), getattr(after, name)
        assert (old != new).all()
        assert new.min() >= 0
        assert new.max() < world.CHOICES[name]


def test_an_edit_of_the_sprite_leaves_the_background_pixels():
    before = draw(16)
    after = edit(before, "shape", "color")
    (a, alpha_a), (b, alpha_b) = world.render(before), world.render(after)
    outside = torch.maximum(alpha_a, alpha_b) == 0
    assert torch.equal(a.movedim(2, -1)[outside], b.movedim(2, -1)[outside])
    inside = torch.minimum(alpha_a, alpha_b) == 1
    assert (a - b).abs().amax(2)[inside].min() > 0.25, "two palette colours are too close"


def test_an_unknown_attribute_is_named():
    with pytest.raises(ValueError, match=r"no attribute \['size'\]: want some of .*shape"):
        edit(draw(2), "color", "size")


@pytest.mark.parametrize("frames", [1, 8, 24])
def test_pictures_and_masks_are_in_range(frames):
    video, alpha = world.render(draw(16, frames=frames))
    assert video.shape == (16, frames, 3, world.SIZE, world.SIZE)
    assert alpha.shape == (16, frames, world.SIZE, world.SIZE)
    assert 0 <= video.min() < 0.1
    assert 0.9 < video.max() <= 1
    assert alpha.min() == 0
    assert alpha.max() == 1


@pytest.mark.parametrize("frames", [8, 32])
def test_the_sprite_stays_inside_and_moves(frames):
    clips = draw(300, frames=frames)
    margin = clips.radius[:, None, None]
    assert (clips.center - margin >= 1 - 1e-4).all()
    assert (clips.center + margin <= world.SIZE - 1 + 1e-4).all()
    reach = clips.center.amax(1) - clips.center.amin(1)
    assert reach.norm(dim=-1).min() > 5
    alpha = world.sprite_alpha(clips[:32])
    assert alpha.sum((2, 3)).min() > 170
    rim = torch.cat([alpha[..., 0, :], alpha[..., -1, :], alpha[..., 0], alpha[..., -1]], -1)
    assert rim.max() == 0, "a sprite is cut by the border"


def test_a_sprite_is_its_colour_and_the_rest_is_the_background():
    clips = draw(24)
    video, alpha = world.render(clips)
    color = world.COLOR_VALUES[clips.color][:, None].expand(-1, world.FRAMES, -1)
    background = world.render_background(clips)[:, None].expand_as(video)
    inside, outside = alpha == 1, alpha == 0
    colors = color[..., None, None].expand_as(video).movedim(2, -1)
    torch.testing.assert_close(video.movedim(2, -1)[inside], colors[inside])
    assert torch.equal(video.movedim(2, -1)[outside], background.movedim(2, -1)[outside])


def test_every_sprite_stands_out_of_every_background():
    """`measure` finds sprites by a difference of 0.25; white on the brightest gray comes closest."""
    brightest = (world.BACKGROUND_VALUES * 1.55)[None]
    darkest = (world.BACKGROUND_VALUES * 0.45)[None]
    for shade in (brightest, darkest):
        assert (world.COLOR_VALUES[:, None] - shade).abs().amax(-1).min() > 0.25


def test_captions_name_the_attributes():
    clips = draw(200)
    for i, caption in enumerate(world.captions(clips)):
        article, color, shape, on, a, background, pattern, last = caption.split()
        assert (article, on, a, last) == ("a", "on", "a", "background")
        assert color == list(world.COLORS)[clips.color[i]]
        assert shape == world.SHAPES[clips.shape[i]]
        assert background == list(world.BACKGROUNDS)[clips.background[i]]
        assert pattern == world.PATTERNS[clips.pattern[i]]


def instruction_of(*attributes):
    """The words of instructions with the changed values replaced by the attribute they belong to."""
    before = draw(50)
    after = edit(before, *attributes)
    names = {"color": list(world.COLORS), "background": list(world.BACKGROUNDS)}
    names |= {"shape": list(world.SHAPES), "pattern": list(world.PATTERNS)}
    sentences = set()
    for i, sentence in enumerate(world.instructions(before, after)):
        words = sentence.split()
        for name, values in names.items():
            new, old = values[getattr(after, name)[i]], values[getattr(before, name)[i]]
            words = [f"<{name}>" if w == new else f"<old {name}>" if w == old else w for w in words]
        sentences.add(" ".join(words))
    return sentences


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        (("shape", "color"), "turn it into a <color> <shape>"),
        (("color",), "make it <color>"),
        (("shape",), "turn the <old shape> into a <shape>"),
        (("background", "pattern"), "make the background <background> <pattern>"),
        (("pattern",), "make the background <background> <pattern>"),
        (("color", "background"), "make it <color> and make the background <background> <pattern>"),
    ],
)
def test_instructions_name_what_changes(attributes, sentence):
    assert instruction_of(*attributes) == {sentence}


def test_clips_are_indexed_as_a_batch():
    clips = draw(6)
    assert len(clips) == 6
    assert clips[1:3].center.shape == (2, world.FRAMES, 2)
    chosen = torch.tensor([4, 0])
    assert torch.equal(world.render(clips)[0][chosen], world.render(clips[chosen])[0])


def test_every_word_is_one_token_and_others_are_spelled(tmp_path):
    tokenizer = text.make_tokenizer(tmp_path)
    clips = draw(20)
    sentences = world.captions(clips) + world.instructions(clips, edit(clips, *world.CHOICES))
    for sentence in sentences:
        assert tokenizer.tokenize(sentence) == [word + text.END for word in sentence.split()]
        assert len(sentence.split()) + 2 <= text.MAX_TOKENS
    assert len(tokenizer.tokenize("giraffe")) > 1
    ids = text.token_ids(tokenizer, sentences)
    assert ids.shape == (len(sentences), text.MAX_TOKENS)
    assert (ids[:, 0] == tokenizer.bos_token_id).all()
    assert (ids[:, -1] == tokenizer.eos_token_id).all()
