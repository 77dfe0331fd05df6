"""A folder of a CLIP with random weights: transformers' real classes, as small as they go."""

from __future__ import annotations

from pathlib import Path

import torch

SIDE, LONGEST = 32, 10  # pixels, tokens


def make_clip(folder: Path) -> Path:
    import transformers as t

    from weft.toyworld import text

    tokenizer = text.make_tokenizer(folder)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    reader = tower | ends | {"vocab_size": len(tokenizer), "max_position_embeddings": LONGEST}
    viewer = tower | {"image_size": SIDE, "patch_size": 8}
    model = t.CLIPModel(t.CLIPConfig(text_config=reader, vision_config=viewer, projection_dim=8))
    with torch.no_grad():  # the class draws weights so small that every text is the same
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    t.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size).save_pretrained(folder)
    return folder
