"""Segment Anything's own classes, sized by the tensors of a checkpoint: no file name and no config is asked.

source  Kirillov et al. 2023, "Segment Anything"; the classes are those of the package `segment-anything`
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

NEEDED = (
    "image_encoder.patch_embed.proj.weight",
    "image_encoder.pos_embed",
    "image_encoder.blocks.0.attn.rel_pos_h",
    "image_encoder.blocks.0.mlp.lin1.weight",
    "image_encoder.neck.0.weight",
    "prompt_encoder.mask_downscaling.3.weight",
    "mask_decoder.transformer.layers.0.mlp.lin1.weight",
    "mask_decoder.transformer.layers.0.cross_attn_token_to_image.q_proj.weight",
    "mask_decoder.mask_tokens.weight",
    "mask_decoder.iou_prediction_head.layers.0.weight",
)
DECODER_HEADS = 8  # of every SAM; the one number that no tensor's shape tells


@dataclass(frozen=True)
class Architecture:
    """The sizes of a SAM."""

    image_size: int  # pixels; pictures are scaled so that their longer side is this long
    patch: int  # pixels
    width: int  # of the image encoder
    depth: int
    heads: int
    window: int  # patches; blocks not in `global_blocks` attend within windows
    global_blocks: tuple[int, ...]
    mlp: int  # hidden width of the image encoder's MLPs
    prompt_width: int
    mask_channels: int
    decoder_depth: int
    decoder_mlp: int
    decoder_downsample: int
    masks: int  # candidates besides the single one
    score_depth: int
    score_width: int

    @property
    def grid(self) -> int:
        return self.image_size // self.patch

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> Architecture:
        """Reads the sizes off a checkpoint's tensors.

        Raises:
            ValueError: tensors that every SAM has are absent.
        """
        if absent := [name for name in NEEDED if name not in weights]:
            raise ValueError(f"is not a Segment Anything checkpoint (vit_h, vit_l, vit_b): it has no {absent[0]}")
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        width, _, patch, _ = shapes["image_encoder.patch_embed.proj.weight"]
        grid = shapes["image_encoder.pos_embed"][1]
        depth = _count(shapes, r"image_encoder\.blocks\.(\d+)\.attn\.rel_pos_h")
        # A relative position table has 2n - 1 rows for windows of n patches; a global block's window is the grid.
        spans = [(shapes[f"image_encoder.blocks.{i}.attn.rel_pos_h"][0] + 1) // 2 for i in range(depth)]
        query = shapes["mask_decoder.transformer.layers.0.cross_attn_token_to_image.q_proj.weight"]
        return cls(
            image_size=grid * patch,
            patch=patch,
            width=width,
            depth=depth,
            heads=width // shapes["image_encoder.blocks.0.attn.rel_pos_h"][1],
            window=min(spans) if min(spans) < grid else 0,
            global_blocks=tuple(i for i, span in enumerate(spans) if span == grid),
            mlp=shapes["image_encoder.blocks.0.mlp.lin1.weight"][0],
            prompt_width=shapes["image_encoder.neck.0.weight"][0],
            mask_channels=shapes["prompt_encoder.mask_downscaling.3.weight"][0],
            decoder_depth=_count(shapes, r"mask_decoder\.transformer\.layers\.(\d+)\.mlp\.lin1\.weight"),
            decoder_mlp=shapes["mask_decoder.transformer.layers.0.mlp.lin1.weight"][0],
            decoder_downsample=query[1] // query[0],
            masks=shapes["mask_decoder.mask_tokens.weight"][0] - 1,
            score_depth=_count(shapes, r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\.weight"),
            score_width=shapes["mask_decoder.iou_prediction_head.layers.0.weight"][0],
        )


def _count(shapes: Mapping[str, tuple], pattern: str) -> int:
    return len({match.group(1) for name in shapes if (match := re.fullmatch(pattern, name))})


def make_sam(a: Architecture) -> nn.Module:
    """A SAM of these sizes with random weights, in evaluation mode.

    Raises:
        ValueError: segment-anything or torchvision cannot be imported.
    """
    modeling = _modeling()
    norm = partial(nn.LayerNorm, eps=1e-6)
    sam = modeling.Sam(
        modeling.ImageEncoderViT(
            img_size=a.image_size,
            patch_size=a.patch,
            embed_dim=a.width,
            depth=a.depth,
            num_heads=a.heads,
            mlp_ratio=a.mlp / a.width,
            out_chans=a.prompt_width,
            norm_layer=norm,
            use_rel_pos=True,
            window_size=a.window,
            global_attn_indexes=a.global_blocks,
        ),
        modeling.PromptEncoder(a.prompt_width, (a.grid, a.grid), (a.image_size, a.image_size), a.mask_channels),
        modeling.MaskDecoder(
            transformer_dim=a.prompt_width,
            transformer=modeling.TwoWayTransformer(
                a.decoder_depth,
                a.prompt_width,
                num_heads=DECODER_HEADS,
                mlp_dim=a.decoder_mlp,
                attention_downsample_rate=a.decoder_downsample,
            ),
            num_multimask_outputs=a.masks,
            iou_head_depth=a.score_depth,
            iou_head_hidden_dim=a.score_width,
        ),
    )
    return sam.eval()


def sam_from(weights: Mapping[str, Tensor]) -> nn.Module:
    """A frozen SAM in float32 that holds these weights.

    Raises:
        ValueError: they are not a SAM's, or it cannot be built here.
    """
    architecture = Architecture.of(weights)
    with torch.device("meta"):  # nothing is drawn that the checkpoint replaces
        sam = make_sam(architecture)
    try:
        sam.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    except RuntimeError as error:
        raise ValueError(f"is not a Segment Anything checkpoint (vit_h, vit_l, vit_b): {error}") from error
    return sam.requires_grad_(False)


def _modeling():
    try:
        from segment_anything import modeling
    except (ImportError, RuntimeError, OSError) as error:  # a torchvision of another torch fails in its own ways
        raise ValueError(
            f"SAM needs the packages segment-anything and torchvision, and importing them failed ({error}): "
            "install the pack's requirements.txt, and the torchvision that belongs to this torch"
        ) from error
    return modeling
