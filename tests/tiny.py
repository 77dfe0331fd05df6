"""Diffusers folders of random weights, small enough to run by the hundred on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

COGVIDEOX_SCHEDULER = {  # of 5b; 2b has a shift of 3
    "_class_name": "CogVideoXDDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 1.0,
}
FRAMES, SIZE = 3, (6, 10)  # latents that are not square, and odd at the next level
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "prediction_type": "epsilon",
}
FINEST_TOO = ("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D")  # as Zeroscope
COARSE_ONLY = ("DownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D")  # as the toy world's models


PIPELINES = {
    "video": ("TextToVideoSDPipeline", "UNet3DConditionModel"),
    "image": ("StableDiffusionPipeline", "UNet2DConditionModel"),
    "instruct": ("StableDiffusionInstructPix2PixPipeline", "UNet2DConditionModel"),
    "motion": ("AnimateDiffPipeline", "UNetMotionModel"),
}


def make_folder(folder: Path, *, kind: str = "video", blocks: tuple[str, ...] = FINEST_TOO, **scheduler) -> Path:
    """Writes the folder of a video, image or instruct model: attention at the levels `blocks` says (those of an image
    model without the 3), `scheduler` over SCHEDULER."""
    from weft.toyworld.text import make_text_encoder, make_tokenizer

    pipeline, unet = PIPELINES[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = make_tokenizer(folder / "tokenizer")
        make_unet(blocks, kind).save_pretrained(folder / "unet")
        make_vae().save_pretrained(folder / "vae")
        make_text_encoder(tokenizer).save_pretrained(folder / "text_encoder")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({**SCHEDULER, **scheduler}))
    index = {
        "_class_name": pipeline,
        "unet": ["diffusers", unet],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def make_unet(blocks: tuple[str, ...], kind: str = "video"):
    import diffusers

    dimensions = {"video": "3D", "motion": "Motion"}.get(kind, "2D")
    blocks = tuple(b.replace("3D", dimensions) for b in blocks)
    heads = (
        {"num_attention_heads": 4, "motion_num_attention_heads": 2} if kind == "motion" else {"attention_head_dim": 4}
    )
    unet = getattr(diffusers, PIPELINES[kind][1])(
        in_channels=8 if kind == "instruct" else 4,
        down_block_types=blocks,
        up_block_types=tuple(b.replace("Down", "Up") for b in reversed(blocks)),
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=64,
        **heads,
    )
    spread(unet)
    return unet


def spread(unet) -> None:
    """Lets everything matter that starts as nothing, and attention be uneven."""
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if not weight.any():  # temporal layers start as the identity: let them matter
                nn.init.normal_(weight, std=0.1 if weight.ndim == 1 else weight[0].numel() ** -0.5)
            if name.endswith(("to_q.weight", "to_k.weight")):
                weight *= 2  # attention as uneven as a trained model's


def make_vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
        scaling_factor=0.5,
    )


def make_latents(frames: int = FRAMES, size: tuple[int, int] = SIZE, seed: int = 0) -> torch.Tensor:
    """[F, 4, h, w] as they travel on a wire."""
    return 2 * torch.randn(frames, 4, *size, generator=torch.Generator().manual_seed(seed))


# ---- CogVideoX ------------------------------------------------------------------------------------------------------


def make_cogvideox_folder(folder: Path, *, rotary: bool = True, layers: int = 4, **scheduler) -> Path:
    """Writes the folder of a CogVideoX 5b, or with `rotary` False of a 2b."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokens = make_sentence_pieces(folder / "tokenizer")
        make_cogvideox(rotary, layers).save_pretrained(folder / "transformer")
        make_video_vae().save_pretrained(folder / "vae")
        make_t5(tokens).save_pretrained(folder / "text_encoder")
    (folder / "scheduler").mkdir()
    shift = {} if rotary else {"snr_shift_scale": 3.0}
    told = json.dumps({**COGVIDEOX_SCHEDULER, **shift, **scheduler})
    (folder / "scheduler" / "scheduler_config.json").write_text(told)
    index = {
        "_class_name": "CogVideoXPipeline",
        "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLCogVideoX"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "scheduler": ["diffusers", "CogVideoXDDIMScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def make_cogvideox(rotary: bool = True, layers: int = 4):
    from diffusers import CogVideoXTransformer3DModel

    network = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=24,
        num_layers=layers,
        sample_width=12,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=16,
        use_rotary_positional_embeddings=rotary,
    )
    spread(network)
    return network


def make_video_vae():
    from diffusers import AutoencoderKLCogVideoX

    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=0.7,
    )


def make_t5(tokens: int):
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=tokens + 4, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2))


def make_sentence_pieces(folder: Path) -> int:
    """Writes T5's tokenizer for the toy world's words; returns how many pieces there are."""
    import io

    import sentencepiece

    from weft.toyworld.world import WORDS

    folder.mkdir(parents=True, exist_ok=True)
    made, words = io.BytesIO(), [*WORDS, " ".join(WORDS)] * 20
    special = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "hard_vocab_limit": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_writer=made, vocab_size=100, model_type="unigram", **special
    )
    (folder / "spiece.model").write_bytes(made.getvalue())
    return len(sentencepiece.SentencePieceProcessor(model_proto=made.getvalue()))


# ---- LaVie ----------------------------------------------------------------------------------------------------------


def make_lavie():
    """LaVie's network, narrow."""
    from weft.backbones.lavie.network import Config, LaVieUNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = LaVieUNet(Config((64, 64, 128, 128), heads=2, cross_attention_dim=64)).eval()
        spread(network)
    return network


def make_lavie_folder(folder: Path, *, suffix: str = ".pt") -> Path:
    """Writes LaVie's file, as it is released, and beside it the folder of a Stable Diffusion 1.4."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    tensors = make_lavie().state_dict()
    if suffix == ".pt":
        torch.save({"ema": tensors, "opt": {"step": 1}}, folder / "lavie_base.pt")
    else:
        save_file(tensors, folder / f"lavie_base{suffix}")
    make_folder(folder / "stable-diffusion-v1-4", kind="image")
    return folder
