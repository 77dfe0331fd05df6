import pytest
import torch

from weft.toyworld import models


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
