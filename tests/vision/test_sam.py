"""SAM from disk, held against the package whose classes it is."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from weft.backbones.memory import PlainMemory
from weft.tests.numerics import assert_close
from weft.tests.vision.asked import PROMPTS, noise, truncated
from weft.toyworld import sam as toy
from weft.vision.ports import Prompts
from weft.vision.sam import load_segmenter
from weft.vision.sam_parts import Architecture, make_sam, sam_from

CPU = PlainMemory("cpu")


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return toy.make_sam().state_dict()


@pytest.fixture(scope="module")
def checkpoint(weights, tmp_path_factory):
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("sams") / "any name.safetensors"
    save_file(weights, path)
    return path


@pytest.fixture(scope="module")
def sam(checkpoint):
    return load_segmenter(checkpoint, memory=CPU)


@pytest.mark.parametrize("kind", ["vit_b", "vit_l", "vit_h"])
def test_the_official_sizes_are_read_off_the_tensors(kind):
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        official = sam_model_registry[kind]()
        ours = make_sam(Architecture.of(official.state_dict()))
    want, got = ({name: t.shape for name, t in m.state_dict().items()} for m in (official, ours))
    assert got == want
    assert got  # and what no tensor tells
    for name in ("image_encoder.img_size", "mask_decoder.transformer.num_heads", "prompt_encoder.input_image_size"):
        value = [_get(m, name) for m in (official, ours)]
        assert value[0] == value[1], name
    for mine, theirs in zip(ours.image_encoder.blocks, official.image_encoder.blocks, strict=True):
        assert mine.window_size == theirs.window_size
        assert mine.attn.num_heads == theirs.attn.num_heads
        assert mine.norm1.eps == theirs.norm1.eps


def _get(module, path):
    for name in path.split("."):
        module = getattr(module, name)
    return module


@pytest.mark.parametrize("name", PROMPTS)
def test_answers_are_the_official_predictors(sam, weights, name):
    from segment_anything import SamPredictor

    frame, asked = noise(48, 64), PROMPTS[name]
    predictor = SamPredictor(sam_from(weights))
    predictor.set_image((frame * 255).round().byte().numpy())
    points = (*asked.points, *asked.not_points)
    labels = [1] * len(asked.points) + [0] * len(asked.not_points)
    masks, scores, raw = predictor.predict(
        np.array(points, dtype=float) if points else None,
        np.array(labels) if points else None,
        box=np.array(asked.box, dtype=float) if asked.box else None,
        multimask_output=name == "click",
    )
    got = sam.look((frame * 255).round() / 255)(asked)
    assert len(got.masks) == (3 if name == "click" else 1)
    assert torch.equal(got.masks, torch.from_numpy(masks))
    torch.testing.assert_close(got.scores, torch.from_numpy(scores), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.raw, torch.from_numpy(raw), rtol=1e-3, atol=1e-4)


def test_an_answer_can_be_asked_again(sam):
    ask = sam.look(noise(64, 64))
    first = ask(PROMPTS["box"])
    again = ask(Prompts(box=PROMPTS["box"].box, guess=first.raw[0]))
    assert not torch.equal(again.raw, first.raw)


@pytest.mark.parametrize("size", [(64, 64), (31, 100), (128, 90), (7, 64), (1, 200)])
def test_pictures_of_any_shape(sam, size):
    got = sam.look(noise(*size))(Prompts(((3, 3),)))
    assert got.masks.shape == (3, *size)


def test_places_scale_with_the_picture(sam):
    """A picture twice as large, asked at the same place, gives the same logits."""
    hills = noise(4, 4).movedim(-1, 0)[None]
    small, large = (F.interpolate(hills, s, mode="bicubic")[0].movedim(0, -1).clamp(0, 1) for s in (64, 128))
    a = sam.look(small)(Prompts(((30, 20),), (), (10, 8, 40, 33)))
    b = sam.look(large)(Prompts(((60.5, 40.5),), (), (20.5, 16.5, 80.5, 66.5)))
    assert (a.raw - b.raw).abs().mean() < 0.02 * a.raw.std()
    elsewhere = sam.look(large)(Prompts(((30, 20),), (), (10, 8, 40, 33)))
    assert (a.raw - elsewhere.raw).abs().mean() > 0.1 * a.raw.std()


def test_pth_files_of_nothing_but_tensors(sam, weights, tmp_path):
    torch.save(weights, tmp_path / "sam.pth")
    frame = noise(64, 64)
    got = load_segmenter(tmp_path / "sam.pth", memory=CPU).look(frame)(PROMPTS["click"])
    assert_close(got.raw, sam.look(frame)(PROMPTS["click"]).raw)


def test_half_precision_is_near(sam, checkpoint):
    half = load_segmenter(checkpoint, dtype="bfloat16", memory=CPU)
    assert {p.dtype for p in half.sam.image_encoder.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in half.sam.mask_decoder.parameters()} == {torch.float32}
    frame = noise(64, 64)
    got, want = (s.look(frame)(PROMPTS["click"]).raw for s in (half, sam))
    assert (got - want).abs().mean() < 0.1 * want.std()


def test_loads_and_answers_inside_inference_mode(sam, checkpoint):
    frame = noise(64, 64)
    with torch.inference_mode():
        got = load_segmenter(checkpoint, memory=CPU).look(frame.clone())(PROMPTS["click"])
    assert_close(got.raw, sam.look(frame)(PROMPTS["click"]).raw)


class Code:
    """What a pickle may hold besides tensors."""


def pickled(path, source):
    torch.save({"model": Code()}, path)


def another(path, source):
    torch.save({"conv.weight": torch.zeros(3)}, path)


def nested(path, source):
    torch.save({"epoch": 3, "model": {}}, path)


def spoiled(path, source):
    from safetensors.torch import load_file

    weights = load_file(source)
    del weights["prompt_encoder.no_mask_embed.weight"]
    torch.save(weights, path)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("gone.pth", lambda path, source: None, "there is no file 'gone.pth'"),
        ("cut.safetensors", truncated, "'.*cut.safetensors' is not a whole safetensors file"),
        ("cut.pth", truncated, "'cut.pth' is truncated, or a pickle that holds more than tensors"),
        ("code.pth", pickled, "'code.pth' is truncated, or a pickle that holds more than tensors"),
        ("other.pth", another, "'other.pth' is not a .*SAM 2 .* transformers folder.* no image_encoder"),
        ("nested.pth", nested, "'nested.pth' holds no tensors by name"),
        ("part.pth", spoiled, "'part.pth' is not a Segment Anything checkpoint .*no_mask_embed"),
        ("sam.onnx", truncated, "'sam.onnx' is not a checkpoint: want a file that ends in .safetensors"),
    ],
)
def test_files_that_are_no_sam_are_refused(checkpoint, tmp_path, name, write, message):
    write(tmp_path / name, checkpoint)
    with pytest.raises(ValueError, match=rf"(?s){message}"):
        load_segmenter(tmp_path / name, memory=CPU)


def test_a_wrong_dtype_is_refused(checkpoint):
    with pytest.raises(ValueError, match="no dtype 'int8'"):
        load_segmenter(checkpoint, dtype="int8")


def test_a_missing_package_is_named(checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "segment_anything", None)
    with pytest.raises(ValueError, match=r"packages segment-anything and torchvision.*requirements.txt"):
        load_segmenter(checkpoint)
