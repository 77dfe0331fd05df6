import torch

from weft.toyworld import world
from weft.toyworld.reading import find_sprites, match_background


def draw(n, seed=4321, **options):
    return world.draw(n, torch.Generator().manual_seed(seed), **options)


def test_debris_smaller_than_a_sprite_is_not_one():
    target = draw(2)
    video = world.render_background(target)[:, None].repeat(1, 8, 1, 1, 1)
    video[:, :, :, 20:26, 20:26] = 1
    assert not find_sprites(video, world.render_background(target)).found.any()
    video[:, :, :, 20:27, 20:27] = 1
    assert find_sprites(video, world.render_background(target)).found.all()


def test_a_blob_that_resembles_nothing_has_no_shape():
    background = world.render_background(draw(1))
    video = background[:, None].clone()
    video[..., 30:33, :] = 1
    sprites = find_sprites(video, background)
    assert sprites.found.all()
    assert sprites.shape.tolist() == [[-1]]


def test_the_matched_background_is_the_one_behind_the_sprite():
    clips = draw(48)
    found = match_background(world.render(clips)[0])
    error = (world.render_background(found) - world.render_background(clips)).abs()
    assert error.mean((1, 2, 3)).max() < 0.05
    assert error.max() < 0.25, "the phase is too coarse to tell sprite from background"
