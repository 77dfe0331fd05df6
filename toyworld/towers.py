"""The two small towers, one for texts and one for pictures, that the toy world's detector and its CLIP are made of."""

from __future__ import annotations

from typing import Any

from . import text, world


def small_towers(tokenizer, **both: Any) -> dict[str, Any]:
    """Keywords of a transformers config with two towers: 64x64 pixels in 8x8 patches. `both` goes into either tower."""
    tower = {"num_attention_heads": 4, "hidden_act": "gelu", **both}
    reader = {
        "vocab_size": len(tokenizer),
        "hidden_size": text.WIDTH,
        "intermediate_size": 2 * text.WIDTH,
        "num_hidden_layers": 2,
        "max_position_embeddings": text.MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    viewer = {"image_size": world.SIZE, "patch_size": 8, "hidden_size": 96, "intermediate_size": 288}
    viewer["num_hidden_layers"] = 4
    return {"text_config": reader | tower, "vision_config": viewer | tower, "projection_dim": text.WIDTH}
