import pytest
import torch

from weft.backbones.diffusers.loading import load_backbone
from weft.engine.inversion import add_noise
from weft.methods.fate_zero import FateZero
from weft.methods.word_view import shares, word_maps, words_mask
from weft.tests.conftest import ROOT
from weft.toyworld import clip


@pytest.fixture(scope="module")
def noised():
    model = load_backbone(ROOT / "toyworld" / "weights" / "image", name="toyworld/image")
    frames = clip.read_video(clip.CLIP)
    prompt = model.text.embed("a yellow square on a plum checkered background")
    return model, add_noise(model, model.codec.encode(frames), prompt, steps=4)


def test_words_look_at_different_places(noised):
    model, trajectory = noised
    maps = word_maps(model, trajectory, ("square", "plum"))
    assert maps.shape[:2] == (2, trajectory.shape[0])
    each = shares(maps)
    assert each.amax((2, 3)).eq(1).all()
    square, plum = (words_mask(one[None], (64, 64), 0.9) for one in maps)
    assert not torch.equal(square, plum)
    assert 0 < square.mean() < 0.5


def test_the_mask_is_that_of_fate_zero(noised):
    model, trajectory = noised
    maps = word_maps(model, trajectory, ("square",))
    assert torch.equal(words_mask(maps, (8, 8), 0.8).bool(), FateZero(threshold=0.8).mask(maps[0], (8, 8)))


@pytest.mark.parametrize(("words", "said"), [((), "name the words"), (("zebra",), "does not have the word 'zebra'")])
def test_words_that_are_not_there_are_refused(noised, words, said):
    with pytest.raises(ValueError, match=said):
        word_maps(*noised, words)
