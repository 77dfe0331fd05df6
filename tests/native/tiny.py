"""Small random networks of core's real classes, one of each family."""

from __future__ import annotations

from dataclasses import dataclass, field

import comfy.model_management as management
import comfy.model_patcher
import comfy.supported_models as models
import comfy.utils
import torch
from comfy.ldm.hunyuan_video.model import HunyuanVideoParams
from torch import nn

V_SIGN = "output_blocks.11.1.transformer_blocks.0.norm1.bias"  # uneven in models of SD 2 that predict v
HEADS, TEXT_WIDTH, CHANNELS = 8, 64, (32, 32, 64)
UNET = {
    "image_size": 8,
    "in_channels": 4,
    "model_channels": 32,
    "out_channels": 4,
    "num_res_blocks": [1, 1, 1],
    "dropout": 0,
    "channel_mult": (1, 1, 2),
    "num_heads": HEADS,
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1, 0],
    "transformer_depth_output": [1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": TEXT_WIDTH,
    "use_linear_in_transformer": False,
    "legacy": False,
    "use_temporal_attention": False,
    "adm_in_channels": None,
}


class StandInVAE:
    """What a backbone asks a VAE of core's for, where a test brings latents of its own."""

    latent_channels = 4
    upscale_ratio = 8

    def __init__(self, latent_channels: int = 4, upscale_ratio=8):
        self.latent_channels, self.upscale_ratio = latent_channels, upscale_ratio


def as_patcher(model: nn.Module):
    return comfy.model_patcher.ModelPatcher(model, management.get_torch_device(), management.unet_offload_device())


# ---- one of each family ---------------------------------------------------------------------------------------------

WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 48,
    "ffn_dim": 64,
    "num_heads": 2,
    "num_layers": 3,
    "in_dim": 16,
    "out_dim": 16,
    "text_dim": 24,
    "freq_dim": 32,
    "patch_size": (1, 2, 2),
    "window_size": (-1, -1),
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
}
LTX = {
    "image_model": "ltxv",
    "in_channels": 128,
    "num_layers": 3,
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "cross_attention_dim": 48,
    "caption_channels": 24,
    "attention_bias": True,
}
HUNYUAN = {
    "image_model": "hunyuan_video",
    "in_channels": 16,
    "patch_size": [1, 2, 2],
    "out_channels": 16,
    "vec_in_dim": 12,
    "axes_dim": [8, 8, 8],
    "context_in_dim": 24,
    "hidden_size": 48,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "theta": 256,
    "qkv_bias": True,
    "guidance_embed": True,
    "meanflow": False,
    "byt5": False,
}
if "meanflow_sum" in getattr(HunyuanVideoParams, "__annotations__", {}):  # newer core
    HUNYUAN |= {"use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False}
MOCHI = {
    "image_model": "mochi_preview",
    "depth": 3,
    "patch_size": 2,
    "num_heads": 2,
    "hidden_size_x": 48,
    "hidden_size_y": 24,
    "mlp_ratio_x": 256.0,
    "mlp_ratio_y": 2.0,
    "learn_sigma": False,
    "in_channels": 12,
    "qk_norm": True,
    "qkv_bias": False,
    "out_bias": True,
    "attn_drop": 0.0,
    "patch_embed_bias": True,
    "posenc_preserve_area": True,
    "timestep_mlp_bias": True,
    "attend_to_padding": False,
    "timestep_scale": 1000.0,
    "use_t5": True,
    "t5_feat_dim": 24,
    "t5_token_length": 6,
    "rope_theta": 10000.0,
}


SD2 = {
    **UNET,
    "model_channels": 64,  # heads of 64 are fixed in core
    "use_linear_in_transformer": True,
    "channel_mult": (1, 2),
    "num_res_blocks": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
}
SDXL = {
    **SD2,
    "num_classes": "sequential",
    "adm_in_channels": 2816,  # 1280 of a pooled text, and six numbers as 256 each: fixed in core
    "transformer_depth": [0, 2],
    "transformer_depth_output": [0, 0, 2, 2],
    "transformer_depth_middle": 2,
}
WAN_I2V = {**WAN, "model_type": "i2v", "in_dim": 36}
WAN_22_I2V = {**WAN, "in_dim": 36}  # no picture in its attention
VACE = {**WAN, "model_type": "vace", "vace_layers": 1, "vace_in_dim": 96}
COGVIDEOX = {
    "image_model": "cogvideox",
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "in_channels": 16,
    "out_channels": 16,
    "time_embed_dim": 32,
    "text_embed_dim": 24,
    "num_layers": 3,
    "patch_size": 2,
    "use_rotary_positional_embeddings": True,
    "max_text_seq_length": 5,
}
LTX_AUDIO = {
    "image_model": "ltxav",
    "in_channels": 128,
    "num_layers": 3,
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "cross_attention_dim": 48,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 16,
    "audio_cross_attention_dim": 32,
    "caption_channels": 24,
    "connector_attention_head_dim": 12,
    "connector_num_attention_heads": 2,
    "connector_num_layers": 1,
}
H3 = {
    "image_model": "minimax_h3",
    "hidden_size": 64,
    "num_layers": 3,
    "token_refiner_num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "ffn_hidden_size": 64,
    "text_dim": 24,
    "timestep_input_dim": 32,
    "time_embed_hidden_size": 64,
    "time_embed_dim": 32,
    "rope_inv_freq_len": 4,
}


def times(step: int, stride: int):
    """A VAE's ratios, as core states them."""
    return (lambda frames: max(0, frames * step - (step - 1)), stride, stride)


@dataclass(frozen=True)
class Family:
    """How to make one, and what goes with it."""

    kind: str  # in comfy.supported_models
    config: dict
    size: tuple[int, int, int, int]  # F, C, h, w: odd where the network fills up
    text: tuple[int, int]  # L, E of a conditioning
    extra: dict = field(default_factory=dict)  # of a conditioning; tuples are the shapes of random tensors
    masked: bool = False  # its conditioning says which tokens of the text count
    upscale_ratio: object = 8
    concat: int = 0  # channels of what its conditioning lays beside the latents
    audio: tuple[int, ...] = ()  # shape of what its latents hold beside the picture
    state: dict = field(default_factory=dict)  # weights that core tells the kind of sampling by


FAMILIES = {
    "sd15": Family("SD15", UNET, (3, 4, 6, 10), (5, TEXT_WIDTH)),
    "wan": Family("WAN21_T2V", WAN, (3, 16, 5, 6), (5, 24), upscale_ratio=times(4, 8)),
    "ltx": Family("LTXV", LTX, (3, 128, 3, 4), (5, 24), {"frame_rate": 25}, True, times(8, 32)),
    "hunyuan": Family(
        "HunyuanVideo", HUNYUAN, (3, 16, 4, 6), (5, 24), {"pooled_output": (1, 12)}, upscale_ratio=times(4, 8)
    ),
    "mochi": Family("GenmoMochi", MOCHI, (2, 12, 4, 6), (6, 24), masked=True, upscale_ratio=times(6, 8)),
    "sd2": Family("SD20", SD2, (3, 4, 6, 10), (5, TEXT_WIDTH), state={V_SIGN: torch.tensor([-1.0, 1.0])}),
    "sdxl": Family("SDXL", SDXL, (3, 4, 6, 10), (5, TEXT_WIDTH), {"pooled_output": (1, 1280), "width": 96}),
    "wan i2v": Family(
        "WAN21_I2V",
        WAN_I2V,
        (3, 16, 4, 6),
        (5, 24),
        {"clip_vision": (1, 257, 1280)},
        concat=16,
        upscale_ratio=times(4, 8),
    ),
    "wan 2.2 i2v": Family("WAN21_I2V", WAN_22_I2V, (3, 16, 4, 6), (5, 24), concat=16, upscale_ratio=times(4, 8)),
    "vace": Family("WAN21_Vace", VACE, (3, 16, 4, 6), (5, 24), upscale_ratio=times(4, 8)),
    "cogvideox": Family("CogVideoX_T2V", COGVIDEOX, (3, 16, 5, 6), (5, 24), upscale_ratio=times(4, 8)),
    "ltx audio": Family(
        "LTXAV", LTX_AUDIO, (3, 128, 3, 4), (5, 48), {"frame_rate": 25}, audio=(1, 8, 7, 16), upscale_ratio=times(8, 32)
    ),
    "h3": Family("MiniMaxH3", H3, (3, 24, 4, 6), (5, 24), audio=(1, 32, 2, 9), upscale_ratio=times(4, 16)),
}
FAMILIES = {name: family for name, family in FAMILIES.items() if hasattr(models, family.kind)}  # of this core
ANIMATE = {**WAN, "model_type": "animate", "in_dim": 36, "dim": 96, "num_heads": 8, "num_layers": 5}
S2V = {**WAN, "model_type": "s2v", "dim": 96, "audio_inject_layers": [0, 2], "audio_dim": 32}
KINDS = {  # of Wan, whose other parts are not small: for a few tests alone
    "5b": Family(
        "WAN22_T2V", {**WAN, "in_dim": 48, "out_dim": 48}, (3, 48, 4, 6), (5, 24), upscale_ratio=times(4, 16)
    ),
    "animate": Family(
        "WAN22_Animate", ANIMATE, (3, 16, 4, 6), (5, 24),
        {"clip_vision": (1, 257, 1280), "pose_video_latent": (1, 16, 2, 4, 6)}, concat=16, upscale_ratio=times(4, 8),
    ),
    "humo": Family(
        "WAN21_HuMo", {**WAN, "model_type": "humo"}, (3, 16, 4, 6), (5, 24), {"audio_embed": (1, 3, 8, 5, 1280)},
        upscale_ratio=times(4, 8),
    ),
    "s2v": Family(
        "WAN22_S2V", S2V, (3, 16, 4, 6), (5, 24),
        {"audio_embed": (1, 25, 32, 12), "control_video": (1, 16, 3, 4, 6)}, upscale_ratio=times(4, 8),
    ),
    "with a frame before": Family(
        "WAN21_T2V", {**WAN, "in_dim_ref_conv": 16}, (3, 16, 4, 6), (5, 24), upscale_ratio=times(4, 8)
    ),
}  # fmt: skip
VIDEO = [name for name in FAMILIES if not name.startswith("sd")]
VARIANTS = ("wan i2v", "wan 2.2 i2v", "vace")  # other inputs of a network that is here already


@dataclass
class Seen:
    """What core's CLIP Vision Encode gives."""

    penultimate_hidden_states: torch.Tensor


@dataclass(frozen=True)
class Made:
    """A small network of a family, and what it is run with."""

    family: Family
    patcher: object

    @property
    def vae(self):
        return StandInVAE(self.family.size[1], self.family.upscale_ratio)

    @property
    def network(self) -> nn.Module:
        return self.patcher.model.diffusion_model

    @property
    def audio(self) -> torch.Tensor | None:
        """The same in every test: it is heard, and not edited."""
        return _random(self.family.audio, 7) if self.family.audio else None

    def wire(self, latents: torch.Tensor):
        """What a LATENT wire holds, of the picture's wire latents."""
        if self.audio is None:
            return latents
        from comfy.nested_tensor import NestedTensor

        return NestedTensor([latents, self.audio])

    def latents(self, seed: int) -> torch.Tensor:
        return _random(self.family.size, seed)

    def conditioning(self, seed: int, longer: bool = False) -> list:
        length, width = self.family.text
        extra = {k: _random(v, seed + 100) if isinstance(v, tuple) else v for k, v in self.family.extra.items()}
        length = 2 * length if longer else length
        frames, _, *size = self.family.size
        if self.family.concat:
            extra["concat_latent_image"] = _random((1, self.family.concat, frames, *size), 50)
            extra["concat_mask"] = torch.ones(1, 1, frames, *size).index_fill(2, torch.tensor([0]), 0)
        if "clip_vision" in extra:
            extra["clip_vision_output"] = Seen(extra.pop("clip_vision"))
        if self.family.masked:
            extra["attention_mask"] = torch.ones(1, length, dtype=torch.long)
            extra["attention_mask"][:, -2:] = 0
        return [[_random((1, length, width), seed), extra]]


def make(
    name: str, dtype: torch.dtype = torch.float32, manual: torch.dtype | None = None, seed: int = 0, layers: int = 0
) -> Made:
    """Random weights, as core's loader makes them: in inference mode, which autograd does not like.

    Args:
        layers: blocks, of a network whose configuration has `num_layers`; 0: as many as it says.
    """
    family = (FAMILIES | KINDS)[name]
    kind = getattr(models, family.kind)(family.config | ({"num_layers": layers} if layers else {}))
    kind.set_inference_dtype(dtype, manual)
    with torch.inference_mode():
        model = kind.get_model(family.state, "", device="cpu")
        generator = torch.Generator().manual_seed(seed)
        for key, weight in model.diffusion_model.named_parameters():
            value = torch.randn(weight.shape, generator=generator) * 0.1
            norm = "norm" in key and weight.ndim == 1 and key.endswith("weight")
            value = value + 1 if norm else value
            # H3's norms are no fp8 in its files, and core's kernel for them takes none.
            weight.data = value.to(manual if norm and manual and name == "h3" else weight.dtype)
        # What else a file would bring: core leaves it as the memory was, which may be NaN.
        held = model.diffusion_model.state_dict().keys()
        for key, buffer in model.diffusion_model.named_buffers():
            if key in held and buffer.is_floating_point():
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
        patcher = as_patcher(model)
        management.load_models_gpu([patcher])
    return Made(family, patcher)


def _random(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
