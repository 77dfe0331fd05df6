"""Custom nodes that stand where core's text encoders and large VAEs are: those classes have no small ones."""

import torch


class StandInCLIP:
    """A CLIP whose conditionings [1, 6, width] depend on the text alone."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "load", ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"width": ("INT", {"max": 2**15}), "pooled": ("INT", {"max": 2**15})}}

    def load(self, width, pooled):
        return (_CLIP(width, pooled),)


class _CLIP:
    def __init__(self, width, pooled):
        self.width, self.pooled = width, pooled

    def tokenize(self, text):
        return {"stand in": text}

    def encode_from_tokens_scheduled(self, tokens):
        generator = torch.Generator().manual_seed(sum(map(ord, tokens["stand in"])))
        if self.pooled:  # HunyuanVideo's, which gives no mask
            extra = {"pooled_output": torch.randn(1, self.pooled, generator=generator)}
        else:
            extra = {"attention_mask": torch.ones(1, 6, dtype=torch.long), "pooled_output": None}
        return [[torch.randn(1, 6, self.width, generator=generator), extra]]


class StandInVAE:
    """A VAE of a layout: averages of cells in the first channels, and back."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "load", ("VAE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"channels": ("INT",), "step": ("INT",)}}

    def load(self, channels, step):
        return (_VAE(channels, step),)


class _VAE:
    def __init__(self, channels, step):
        self.latent_channels, self.step, self.first_stage_model = channels, step, torch.nn.Identity()
        self.upscale_ratio = (lambda n: max(0, n * step - step + 1), 8, 8) if step else 8

    def encode(self, pixels):
        cells = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8) * 2 - 1
        latents = torch.cat([cells, torch.zeros_like(cells[:, :1]).expand(-1, self.latent_channels - 3, -1, -1)], 1)
        return latents[:: self.step].movedim(0, 1)[None] if self.step else latents

    def decode(self, latents):
        frames = latents[0].movedim(1, 0) if self.step else latents
        if self.step:
            frames = torch.cat([frames[:1], frames[1:].repeat_interleave(self.step, 0)])
        pictures = torch.nn.functional.interpolate(frames[:, :3], scale_factor=8).movedim(1, -1) / 2 + 0.5
        return pictures[None] if self.step else pictures


NODE_CLASS_MAPPINGS = {"StandInCLIP": StandInCLIP, "StandInVAE": StandInVAE}
