import pytest
import torch
from safetensors.torch import save_file

from weft.backbones.known_models import KNOWN, missing
from weft.backbones.prompt_file import load_prompt
from weft.engine.edit import edit
from weft.engine.inversion import invert
from weft.tests.tiny import make_latents


def saved(path, **tensors):
    save_file(tensors, path)
    return path


def test_embeddings_of_its_own_encoder_are_its_own_prompt(tmp_path, tiny_image):
    own = tiny_image.text.embed("a red square")
    read = load_prompt(tiny_image, saved(tmp_path / "a.safetensors", anything=own.cond["embedding"]), "a red square")
    assert torch.equal(read.cond["embedding"], own.cond["embedding"])
    assert (read.text, read.encoder, read.frames, read.tokens) == (own.text, own.encoder, 1, ())


def test_one_a_frame_edits_each_frame_by_its_own(tmp_path, tiny_image):
    texts = ("a red square", "a blue cross", "a blue cross")
    each = torch.cat([tiny_image.text.embed(text).cond["embedding"] for text in texts])
    told = saved(tmp_path / "a.safetensors", embedding=each.half(), beside=torch.ones(1))
    prompt = load_prompt(tiny_image, told, "two things")
    assert (prompt.frames, prompt.cond["embedding"].dtype) == (3, torch.float32)
    prompt = load_prompt(tiny_image, saved(tmp_path / "b.safetensors", embedding=each), "two things")
    trajectory = invert(tiny_image, make_latents(), tiny_image.text.embed("a red square"), steps=2)
    edited = edit(tiny_image, trajectory, prompt, guidance=2.0)
    for text, frame in zip(texts, range(3)):
        alone = edit(tiny_image, trajectory, tiny_image.text.embed(text), guidance=2.0)
        torch.testing.assert_close(edited[frame], alone[frame])
    with pytest.raises(ValueError, match="has embeddings for 3 frames and the clip has 4"):
        tiny_image.require_prompt(prompt, 4)


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"embedding": torch.ones(1, 16, 32)}, "has embeddings 32 wide and '.*' reads 64: they were made for another"),
        ({"embedding": torch.ones(16, 64)}, r"holds \[16, 64\] torch.float32: want embeddings \[1 or F, L, E\]"),
        ({"embedding": torch.ones(1, 16, 64, dtype=torch.int32)}, r"torch.int32: want embeddings \[1 or F, L, E\]"),
        ({"a": torch.ones(1, 16, 64), "b": torch.ones(1)}, "holds a, b: want one tensor, or one called 'embedding'"),
        ({"embedding": torch.full((1, 16, 64), float("nan"))}, "holds NaN or infinity"),
        ({}, r"holds none: want embeddings"),
    ],
)
def test_what_is_no_prompt_is_refused(tmp_path, tiny_image, tensors, match):
    with pytest.raises(ValueError, match=match):
        load_prompt(tiny_image, saved(tmp_path / "a.safetensors", **tensors), "x")


def test_pickles_and_broken_files_are_refused(tmp_path, tiny_image):
    with pytest.raises(ValueError, match=r"'a.pt' is no .safetensors: save the embeddings with"):
        load_prompt(tiny_image, tmp_path / "a.pt", "x")
    with pytest.raises(ValueError, match=r"no file 'a.safetensors' in"):
        load_prompt(tiny_image, tmp_path / "a.safetensors", "x")
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        load_prompt(tiny_image, tmp_path / "a.safetensors", "x")


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_model_that_is_missing_says_what_where_from_and_where_to(name):
    message = missing(name, ["tiny", "twin"])
    known = KNOWN[name]
    assert message.startswith(f"no model '{name}': {known.title} wants ")
    for told in (known.files, known.source, known.place, "found tiny, twin"):
        assert told in message
    assert known.place.startswith("models/")


def test_an_unknown_one_says_what_there_is():
    assert missing("mine", []) == "no model 'mine': found none (press R to look again)"
