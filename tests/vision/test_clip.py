"""CLIP from disk, held against the package whose class it is."""

import json
import logging
import shutil
from contextlib import contextmanager

import pytest
import torch

from weft.backbones.memory import PlainMemory
from weft.tests.numerics import assert_close
from weft.tests.vision.tiny_clip import LONGEST, make_clip
from weft.tests.vision.tiny_detectors import change_config
from weft.vision import clip as clips
from weft.vision.clip import is_clip, load_clip

CPU = PlainMemory("cpu")
TEXTS = ["a red square", "a blue circle on a teal striped background", "a cross"]


def noise(n=3, height=40, width=56):
    return torch.rand(n, height, width, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    return make_clip(tmp_path_factory.mktemp("clips") / "tiny")


@pytest.fixture(scope="module")
def clip(folder):
    return load_clip(folder, memory=CPU)


@pytest.fixture(scope="module")
def official(folder):
    """What the library's own model and processors make of these pictures and texts."""
    import transformers

    pixels = transformers.CLIPImageProcessor.from_pretrained(folder)(
        images=list((noise() * 255).round().byte().movedim(-1, 1)), return_tensors="pt"
    )
    words = transformers.CLIPTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        return transformers.CLIPModel.from_pretrained(folder).eval()(**pixels, **words)


def test_vectors_are_the_librarys(clip, official):
    assert_close(clip.embed_pictures(noise()), official.image_embeds)
    assert_close(clip.embed_texts(TEXTS), official.text_embeds)
    assert (official.image_embeds[0] - official.image_embeds[1]).norm() > 0.01
    assert (official.text_embeds[0] - official.text_embeds[1]).norm() > 0.01


def test_vectors_have_length_1(clip):
    for vectors in (clip.embed_pictures(noise()), clip.embed_texts(TEXTS)):
        assert vectors.dtype == torch.float32
        assert_close(vectors.norm(dim=1), torch.ones(3))


def test_many_pictures_are_seen_a_few_at_a_time(clip, monkeypatch):
    seen, forward = [], clip.model.vision_model.forward
    monkeypatch.setattr(
        clip.model.vision_model, "forward", lambda **k: seen.append(len(k["pixel_values"])) or forward(**k)
    )
    want = torch.cat([clip.embed_pictures(picture[None]) for picture in noise(5)])
    seen.clear()
    monkeypatch.setattr(clips, "AT_ONCE", 2)
    assert_close(clip.embed_pictures(noise(5)), want)
    assert seen == [2, 2, 1]


def test_a_text_alone_is_the_same_as_among_longer_ones(clip):
    assert_close(clip.embed_texts(TEXTS[:1])[0], clip.embed_texts(TEXTS)[0])


def test_a_text_that_is_too_long_is_cut_aloud(clip, caplog):
    whole = " ".join(["red"] * (LONGEST - 2))
    with caplog.at_level(logging.WARNING):
        want = clip.embed_texts([whole])
        assert not caplog.records
        got = clip.embed_texts([whole + " square"])
    assert_close(got, want)
    assert f"tiny reads {LONGEST} tokens and cuts the rest of '{whole} square' ({LONGEST + 1})" in caplog.text


def test_half_precision_folders_are_used_in_float32(clip, tmp_path, folder):
    copy = shutil.copytree(folder, tmp_path / "half")
    import transformers

    transformers.CLIPModel.from_pretrained(folder).half().save_pretrained(copy)
    half = load_clip(copy, memory=CPU)
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in half.model.parameters())
    assert_close(half.embed_pictures(noise()), clip.embed_pictures(noise()), torch.bfloat16)


def test_weights_are_moved_by_the_memory_alone(folder):
    class Watched(PlainMemory):
        inside, asked = False, []

        @contextmanager
        def resident(self, module, activations=0):
            self.asked.append((module, activations))
            self.inside = True
            with super().resident(module):
                yield
            self.inside = False

    memory = Watched("cpu")
    clip = load_clip(folder, memory=memory)
    assert not memory.asked
    used = []
    for part in (clip.model.vision_model, clip.model.visual_projection, clip.model.text_model):
        part.register_forward_pre_hook(lambda *_: used.append(memory.inside))
    clip.embed_pictures(noise())
    clip.embed_texts(TEXTS)
    assert used == [True] * 3
    assert [module for module, _ in memory.asked] == [clip.model, clip.model]
    assert memory.asked[0][1] > 0


def test_loads_and_embeds_inside_inference_mode(clip, folder):
    with torch.inference_mode():
        inside = load_clip(folder, memory=CPU)
        got = inside.embed_pictures(noise().clone()), inside.embed_texts(TEXTS)
    assert not any(p.is_inference() for p in inside.model.parameters())
    for vectors, want in zip(got, (clip.embed_pictures(noise()), clip.embed_texts(TEXTS))):
        assert not vectors.is_inference()
        assert_close(vectors, want)


@pytest.mark.parametrize("shape", [(40, 56, 3), (0, 40, 56, 3), (2, 40, 56, 4)], ids=str)
def test_what_are_no_pictures_is_refused(clip, shape):
    with pytest.raises(ValueError, match=r"want pictures \[n, H, W, 3\]"):
        clip.embed_pictures(torch.zeros(shape))


def pickled(folder):
    weights = folder / "model.safetensors"
    weights.unlink()
    torch.save({"weight": torch.zeros(3)}, folder / "pytorch_model.bin")


def truncated(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def blind(folder):
    """Without its vision tower."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("vision_model")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def without(name):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "no config.json in .*: a transformers model folder has one"),
        (without("config.json"), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "cannot read"),
        (lambda f: (f / "config.json").write_text("[]"), "is not the config of a model"),
        (lambda f: change_config(f, model_type="clip_text_model"), "holds a clip_text_model: want the transformers"),
        (without("model.safetensors"), r"no \*.safetensors in 'copy'"),
        (pickled, r"no \*.safetensors in 'copy': other weights are not loaded"),
        (truncated, "'.*copy/model.safetensors' is not a whole safetensors file"),
        (without("preprocessor_config.json"), "no preprocessor_config.json in 'copy': is the download complete?"),
        (without("merges.txt"), "no tokenizer.json in 'copy'"),
        (blind, "lack .* of the tensors of a CLIPModel, vision_model"),
    ],
)
def test_folders_that_are_no_clip_are_refused(folder, tmp_path, spoil, message):
    copy = shutil.copytree(folder, tmp_path / "copy")
    spoil(copy)
    with pytest.raises(ValueError, match=message):
        load_clip(copy, memory=CPU)


def test_folders_are_told_by_their_config(folder, tmp_path):
    assert is_clip(folder)
    assert not is_clip(tmp_path)
    for text in ("{", "[]", json.dumps({"model_type": "clip_text_model"}), json.dumps({"model_type": "t5"})):
        (tmp_path / "config.json").write_text(text)
        assert not is_clip(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\xff")
    assert not is_clip(tmp_path)
