"""ComfyUI's own models, by its own loaders and under the file names of its own templates."""

from __future__ import annotations

from typing import Any

from ...toyworld import clip
from .parts import Column, Graph, Node, Wire, node, read_me, source, wire

SD, INSTRUCT = "v1-5-pruned-emaonly-fp16.safetensors", "instruct-pix2pix-00-22000.safetensors"
LTX, T5 = "ltx-video-2b-v0.9.safetensors", "t5xxl_fp16.safetensors"
WAN = ("wan2.1_t2v_1.3B_fp16.safetensors", "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "wan_2.1_vae.safetensors")
HUNYUAN = ("hunyuan_video_t2v_720p_bf16.safetensors", "hunyuan_video_vae_bf16.safetensors")
HUNYUAN_TEXTS = ("clip_l.safetensors", "llava_llama3_fp8_scaled.safetensors")

NOTE = """\
**{title}**
1. Upload your clip in the Load Video node, and describe it in **Source prompt** as it is.
2. {told}
3. {numbers}
4. Frames: {frames}. A clip that does not fit is cut at its end, and the log says so.
5. The files are those of ComfyUI's own templates: {files}. LoRA and ModelSampling nodes go before **Weft model**.
"""
TARGET = "**Target prompt**: the same words, but for what is to change."
NOTES = {
    "native_sd_cove": {
        "title": "COVE on Stable Diffusion, by ComfyUI's own checkpoint",
        "told": TARGET,
        "numbers": "The numbers are the paper's. **Inject**: more steps keep the layout, fewer edit more.",
        "frames": "any number, sides divisible by 64; 8 to 20 of 512x512 are what the paper edits",
        "files": SD,
    },
    "native_ip2p_via": {
        "title": "VIA on InstructPix2Pix, by ComfyUI's own checkpoint",
        "told": "There is no source prompt here: say what to do in **Instruction**.",
        "numbers": "The numbers are the paper's. **Sample** image_cfg: how strongly to keep to the picture.",
        "frames": "any number, sides divisible by 8",
        "files": INSTRUCT,
    },
    "native_wan_str_match": {
        "title": "STR-Match on Wan 2.1",
        "told": TARGET,
        "numbers": "**STR-Match** strength: more follows the source, less edits more. Guidance moves away from the "
        "source's prompt, as the paper has it.",
        "frames": "1, 5, 9 ... , sides divisible by 16; the model was made for 81 of 832x480",
        "files": ", ".join(WAN),
    },
    "native_wan_coupled": {
        "title": "An edit without inversion on Wan 2.1",
        "told": TARGET,
        "numbers": "**Coupled Edit** has the numbers of FlowEdit on Wan: start says how far from the clip, cfg above "
        "source_cfg how strongly.",
        "frames": "1, 5, 9 ... , sides divisible by 16; the model was made for 81 of 832x480",
        "files": ", ".join(WAN),
    },
    "native_ltx_coupled": {
        "title": "An edit without inversion on LTX-Video",
        "told": TARGET,
        "numbers": "**Coupled Edit** has the numbers of FlowEdit on LTX-Video: cfg above source_cfg says how strongly.",
        "frames": "1, 9, 17 ... , sides divisible by 32; 97 of 768x512 suit the model",
        "files": f"{LTX}, {T5}",
    },
    "native_hunyuan_coupled": {
        "title": "An edit without inversion on HunyuanVideo",
        "told": TARGET,
        "numbers": "**Coupled Edit** has the numbers of FlowEdit on HunyuanVideo: cfg above source_cfg says how "
        "strongly.",
        "frames": "1, 5, 9 ... , sides divisible by 16; 73 of 848x480 suit the model",
        "files": ", ".join((HUNYUAN[0], *HUNYUAN_TEXTS, HUNYUAN[1])),
    },
}
COUPLED = {  # FlowEdit's numbers, by those who ported it
    "native_wan_coupled": {"steps": 50, "start": 0.8, "source_cfg": 5.0, "cfg": 12.0},
    "native_ltx_coupled": {"steps": 30, "start": 0.87, "source_cfg": 2.0, "cfg": 4.5},
    "native_hunyuan_coupled": {"steps": 30, "start": 0.87, "source_cfg": 6.0, "cfg": 12.0},
}


def native(name: str) -> Graph:
    """The graph of one of `NOTES`."""
    loaders, parts = _model(name)
    model, latent = wire("Weft model"), wire("Encode")
    told = {title: node("CLIPTextEncode", clip=parts["clip"], text=text) for title, text in _texts(name).items()}
    encode = {"Encode": node("WeftEncodeFrames", model=model, images=wire("Source frames", "images"))}
    edit, last = _edit(name, model, latent)
    return {
        "Read me": read_me(NOTE.format(**NOTES[name])),
        "Source": source(),
        "Model": loaders | {"Weft model": node("WeftFromComfyModel", **parts)},
        "Prompts": told | encode,
        **edit,
        "Result": {"Decode": node("WeftDecodeFrames", model=model, latent=last), **_with_sound(wire("Decode"))},
    }


def _texts(name: str) -> dict[str, str]:
    if name == "native_ip2p_via":
        return {"Instruction": clip.instruction(), "No text": ""}
    of_source, of_target = clip.captions()
    texts = {"Source prompt": of_source, "Target prompt": of_target}
    return texts | ({"Negative prompt": ""} if name in COUPLED else {})


def _model(name: str) -> tuple[Column, dict[str, Wire]]:
    """Core's loaders, and what each of MODEL, VAE and CLIP comes from."""
    if name in ("native_sd_cove", "native_ip2p_via"):
        file = SD if name == "native_sd_cove" else INSTRUCT
        return {"Checkpoint": node("CheckpointLoaderSimple", ckpt_name=file)}, _of("Checkpoint", "Checkpoint")
    if name == "native_ltx_coupled":
        made = {
            "Checkpoint": node("CheckpointLoaderSimple", ckpt_name=LTX),
            "Text encoder": node("CLIPLoader", clip_name=T5, type="ltxv"),
        }
        return made, _of("Checkpoint", "Checkpoint") | {"clip": wire("Text encoder")}
    if name == "native_hunyuan_coupled":
        network, vae = HUNYUAN
        first, second = HUNYUAN_TEXTS
        reader: Node = node("DualCLIPLoader", clip_name1=first, clip_name2=second, type="hunyuan_video")
    else:
        network, text, vae = WAN
        reader = node("CLIPLoader", clip_name=text, type="wan")
    made = {
        "Network": node("UNETLoader", unet_name=network, weight_dtype="default"),
        "Text encoder": reader,
        "VAE": node("VAELoader", vae_name=vae),
    }
    parts = {"model": wire("Network"), "vae": wire("VAE"), "clip": wire("Text encoder")}
    if name == "native_wan_coupled":  # FlowEdit's shift on Wan
        made["Shift"] = node("ModelSamplingSD3", model=wire("Network"), shift=5.0)
        parts["model"] = wire("Shift")
    return made, parts


def _of(model: str, rest: str) -> dict[str, Wire]:
    return {"model": wire(model, "MODEL"), "vae": wire(rest, "VAE"), "clip": wire(rest, "CLIP")}


def _edit(name: str, model: Wire, latent: Wire) -> tuple[dict[str, Column], Wire]:
    """The columns that edit, and the latents they end with."""
    start: dict[str, Any] = {"model": model, "latent": latent}
    if name in COUPLED:
        prompts = {"source_prompt": wire("Source prompt"), "target_prompt": wire("Target prompt")}
        made = node("WeftCoupledEdit", **start, **prompts, negative=wire("Negative prompt"), **COUPLED[name])
        return {"Edit": {"Coupled Edit": made}}, wire("Coupled Edit", "latent")
    if name == "native_ip2p_via":
        method = {"Gather-swap": node("WeftGatherSwapAttention")}
        begin = {"Noise": node("WeftAddNoise", **start, source_prompt=wire("No text"), steps=10)}
        sample = {"trajectory": wire("Noise"), "positive": wire("Instruction"), "plan": wire("Gather-swap")}
        sample |= {"cfg": 7.5, "image_cfg": 1.5}
    elif name == "native_wan_str_match":
        method = {"STR-Match": node("WeftSTRLatentOptimizer", strength=0.01, step_mode="relative")}
        begin = {"Invert": node("WeftDDIMInversion", **start, source_prompt=wire("Source prompt"), steps=50)}
        sample = {"trajectory": wire("Invert"), "positive": wire("Target prompt"), "plan": wire("STR-Match")}
        sample |= {"cfg": 6.0}
    else:
        plan = wire("Over the clip")
        method = {
            "Find": node("WeftCorrespondence", **start),
            "Inject": node("WeftFeatureInjection", feature_steps=40, attention_steps=40),
            "Along matches": node("WeftCorrespondenceAttention", plan=wire("Inject"), correspondence=wire("Find")),
            "Over the clip": node("WeftSpatioTemporalAttention", plan=wire("Along matches")),
        }
        told = {"source_prompt": wire("Source prompt"), "plan": plan, "steps": 100, "edit_steps": 50}
        begin = {"Invert": node("WeftDDIMInversion", **start, **told)}
        sample = {"trajectory": wire("Invert"), "positive": wire("Target prompt"), "plan": plan, "cfg": 7.5}
    edit = {"Sample": node("WeftEditSampler", model=model, **sample)}
    return {"Method": method, "Edit": begin | edit}, wire("Sample", "latent")


def _with_sound(frames: Wire) -> Column:
    fps, audio = wire("Source frames", "fps"), wire("Source frames", "audio")
    return {
        "Edited video": node("CreateVideo", images=frames, fps=fps, audio=audio),
        "Save": node("SaveVideo", video=wire("Edited video"), filename_prefix="video/weft"),
    }
