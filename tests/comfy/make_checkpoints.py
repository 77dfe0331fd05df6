"""Small random checkpoints of core's real classes, as its own loaders take them: python make_checkpoints.py COMFYUI OUT

Run with the Python of that ComfyUI. What a loader fixes (320 channels, heads of 128) is as large as it must be.
"""

import json
import sys
from pathlib import Path

comfyui, out = sys.argv[1], Path(sys.argv[2])
sys.path.insert(0, comfyui)
sys.argv = ["x", "--cpu"]
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.ops  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.hunyuan_video.model import HunyuanVideo  # noqa: E402
from comfy.ldm.lightricks.model import LTXVModel  # noqa: E402
from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from comfy.ldm.wan.model import WanModel  # noqa: E402

MADE = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.disable_weight_init}
UNET = {
    "image_size": 8, "model_channels": 320, "out_channels": 4, "num_res_blocks": [1], "dropout": 0,
    "channel_mult": (1,), "num_heads": 8, "use_spatial_transformer": True, "transformer_depth": [1],
    "transformer_depth_output": [1, 1], "transformer_depth_middle": 1, "context_dim": 768, "legacy": False,
}  # fmt: skip
WAN = {"model_type": "t2v", "dim": 128, "ffn_dim": 128, "num_heads": 1, "num_layers": 2}
LTX = {
    "in_channels": 128, "cross_attention_dim": 64, "attention_head_dim": 16, "num_attention_heads": 4,
    "caption_channels": 48, "num_layers": 2, "vae_scale_factors": [8, 8, 8], "causal_temporal_positioning": False,
}  # fmt: skip
VAE = {
    "dims": 3, "in_channels": 3, "out_channels": 3, "latent_channels": 128, "norm_layer": "pixel_norm", "patch_size": 4,
    "blocks": [["compress_all", 1], ["compress_time", 1], ["compress_time", 1], ["res_x", 1]],
    "latent_log_var": "uniform", "causal_decoder": False, "spatial_padding_mode": "zeros",
}  # fmt: skip
HUNYUAN = {
    "in_channels": 16, "patch_size": [1, 2, 2], "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 64,
    "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 1, "depth": 1, "depth_single_blocks": 1,
    "axes_dim": [16, 56, 56], "theta": 256, "qkv_bias": True, "guidance_embed": True, "byt5": False, "meanflow": False,
}  # fmt: skip


def save(module, folder, name, prefix="", more=None, metadata=None):
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for key, tensor in module.state_dict().items():
        value = torch.randn(tensor.shape, generator=generator) * 0.02
        tensors[prefix + key] = (value + 1 if "norm" in key and key.endswith(("weight", "scale")) else value).half()
    path = out / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    comfy.utils.save_torch_file(tensors | (more or {}), str(path), metadata=metadata)


unet = "model.diffusion_model."
save(UNetModel(in_channels=4, **UNET, **MADE), "checkpoints", "v1-5-pruned-emaonly-fp16.safetensors", unet)
save(UNetModel(in_channels=8, **UNET, **MADE), "checkpoints", "instruct-pix2pix-00-22000.safetensors", unet)
save(WanModel(**WAN, **MADE), "diffusion_models", "wan2.1_t2v_1.3B_fp16.safetensors")
if "meanflow_sum" in getattr(sys.modules[HunyuanVideo.__module__].HunyuanVideoParams, "__annotations__", {}):
    HUNYUAN |= {"use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False}
save(HunyuanVideo(**HUNYUAN, **MADE), "diffusion_models", "hunyuan_video_t2v_720p_bf16.safetensors")
vae = VideoVAE(config=VAE)
for weight in vae.parameters():
    torch.nn.init.normal_(weight, std=0.02)
for name, buffer in vae.per_channel_statistics.named_buffers():
    buffer.fill_(1.0 if "std" in name else 0.0)
of_vae = {f"vae.{key}": tensor.half().contiguous() for key, tensor in vae.state_dict().items()}
config = {"config": json.dumps({"transformer": LTX, "vae": VAE})}
save(LTXVModel(**LTX, **MADE), "checkpoints", "ltx-video-2b-v0.9.safetensors", unet, of_vae, config)
