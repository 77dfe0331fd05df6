"""Run by `test_toy_ltx.py` in a process of its own: what ComfyUI's own classes make of a checkpoint.

python core_ltx.py COMFYUI CHECKPOINT GIVEN.safetensors MADE.safetensors
"""

import os
import sys


def main(comfyui, checkpoint, given, made):
    sys.path.insert(0, comfyui)
    sys.argv = ["core", "--cpu", "--force-fp32", "--fp32-vae"]
    os.chdir(comfyui)
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.sample
    import comfy.sd
    import torch
    from safetensors.torch import load_file, save_file

    have = load_file(given)
    model, _, codec = comfy.sd.load_checkpoint_guess_config(checkpoint, output_vae=True, output_clip=False)[:3]
    # whole numbers: core adds a mask of floats as it is, and then in one shape for all clips
    prompts, mask = have["prompts"], torch.ones(have["prompts"].shape[:2], dtype=torch.long)
    text = [[prompts[:1], {"attention_mask": mask[:1]}]]
    with torch.inference_mode():
        latents = codec.encode(have["video"].movedim(1, -1))
        frames = codec.decode(have["latents"])
        network = model.model.diffusion_model.float()
        sampled = comfy.sample.sample(
            model, have["x"][:1], 4, 1.0, "euler", "simple", text, text, torch.zeros_like(have["x"][:1]), seed=0
        )
        denoised = model.model.apply_model(have["x"], have["t"], c_crossattn=prompts, attention_mask=mask)
        velocity = network(have["x"], have["t"], prompts, mask, frame_rate=25)
    result = {"latents": latents, "frames": frames, "sampled": sampled, "denoised": denoised, "velocity": velocity}
    save_file({name: tensor.float().contiguous() for name, tensor in result.items()}, made)


if __name__ == "__main__":
    main(*sys.argv[1:])
