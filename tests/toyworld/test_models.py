import pytest
import torch
from safetensors import safe_open

from weft.tests.conftest import ROOT
from weft.toyworld import models, text

SHIPPED = ROOT / "toyworld" / "weights"


def names(folder):
    with safe_open(folder / "text_encoder" / "model.safetensors", framework="pt") as file:
        return list(file.keys())


@pytest.mark.parametrize("name", ["image", "video", "instruct"])
def test_shipped_models_are_saved_in_the_names_that_every_version_reads(name):
    assert all(n.startswith("text_model.") for n in names(SHIPPED / name))
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        assert (SHIPPED / name / "tokenizer" / file).is_file()


def test_what_a_new_transformers_saves_is_made_portable(tmp_path):
    tokenizer = text.make_tokenizer(tmp_path / "files")
    text.make_text_encoder(tokenizer).save_pretrained(tmp_path / "model" / "text_encoder")
    tokenizer.save_pretrained(tmp_path / "model" / "tokenizer")
    for _ in range(2):  # a second time changes nothing
        text.write_portably(tmp_path / "model", tmp_path / "files")
        assert all(n.startswith("text_model.") and n.count("text_model.") == 1 for n in names(tmp_path / "model"))
    loaded = type(tokenizer).from_pretrained(tmp_path / "model" / "tokenizer")
    assert loaded("a red square").input_ids == tokenizer("a red square").input_ids


def test_the_video_model_starts_as_the_image_model():
    """Frame by frame it computes what the image model does, until training changes its temporal layers."""
    torch.manual_seed(0)
    image = models.make_image_unet(fine=False).eval()
    video = models.make_video_unet(image).eval()
    x, t, prompt = torch.randn(2, 4, 3, 16, 16), torch.tensor([10, 700]), torch.randn(2, 16, 64)
    with torch.no_grad():
        frames = [image(x[:, :, f], t, prompt).sample for f in range(3)]
        torch.testing.assert_close(video(x, t, prompt).sample, torch.stack(frames, 2), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="does not fit into the video model"):
        models.make_video_unet(models.make_image_unet())


def test_finer_attention_starts_as_the_identity():
    torch.manual_seed(0)
    coarse = models.make_image_unet(fine=False).eval()
    fine = models.refined(coarse).eval()
    x, t, prompt = torch.randn(2, 4, 16, 16), torch.tensor([10, 700]), torch.randn(2, 16, 64)
    with torch.no_grad():
        torch.testing.assert_close(fine(x, t, prompt).sample, coarse(x, t, prompt).sample, atol=1e-4, rtol=1e-4)
    assert len(fine.attn_processors) > len(coarse.attn_processors)
    with pytest.raises(ValueError, match="train image anew before detail"):
        models.refined(fine)
