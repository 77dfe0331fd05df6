"""Folders of SAM 2 and of detectors with random weights: transformers' real classes, as small as they go."""

from __future__ import annotations

import json
from pathlib import Path

import torch

SIDE = 64


def make_sam2(folder: Path) -> Path:
    """A SAM 2 video model for pictures of 64 pixels. The class wants a memory 64 wide, and the rest wider."""
    import transformers as t

    hiera = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [SIDE, SIDE],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [4, 4, 4, 2],
        "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [2, 2],
    }
    vision = {
        "model_type": "sam2_vision_model",
        "backbone_config": hiera,
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 128,
    }
    config = t.Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 128, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": 128, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
        image_size=SIDE,
        num_maskmem=3,
        max_object_pointers_in_encoder=4,
        memory_attention_hidden_size=128,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=32,
        memory_attention_rope_feat_sizes=[4, 4],
        memory_encoder_hidden_size=128,
        memory_encoder_output_channels=64,
        mask_downsampler_embed_dim=128,
        memory_fuser_num_layers=1,
        memory_fuser_embed_dim=128,
        memory_fuser_intermediate_dim=32,
    )
    model = t.Sam2VideoModel(config)
    with torch.no_grad():  # the class draws weights so small that every answer is the same
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    image = t.Sam2ImageProcessor(size=size, mask_size={"height": 16, "width": 16})
    t.Sam2VideoProcessor(image, t.Sam2VideoVideoProcessor(size=size)).save_pretrained(folder)
    return folder


def make_owlv2(folder: Path) -> Path:
    from weft.toyworld import detector, text

    tokenizer = text.make_tokenizer(folder)
    detector.make_detector(tokenizer).save_pretrained(folder)
    detector.make_processor(tokenizer).save_pretrained(folder)
    return folder


def make_grounding_dino(folder: Path) -> Path:
    import transformers as t

    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "a", "red", "square", "blue", "circle"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = t.BertTokenizer(vocab=dict(zip(words, range(len(words)))), model_max_length=32)
    backbone = {
        "model_type": "swin",
        "image_size": SIDE,
        "patch_size": 4,
        "embed_dim": 8,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 2, 2],
        "window_size": 2,
        "out_features": ["stage2", "stage3", "stage4"],
    }
    reader = {"model_type": "bert", "vocab_size": len(words), "hidden_size": 16, "intermediate_size": 16}
    config = t.GroundingDinoConfig(
        backbone_config=backbone,
        text_config=reader | {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32},
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=9,
        max_text_len=32,
    )
    t.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    image = t.GroundingDinoImageProcessor(size={"shortest_edge": 2 * SIDE, "longest_edge": 4 * SIDE})
    t.GroundingDinoProcessor(image, tokenizer).save_pretrained(folder)
    return folder


def change_config(folder: Path, **entries) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))
