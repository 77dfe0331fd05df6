"""What segment-anything does not do itself: it makes three sizes of SAM, each by its name. Here sizes are read off the
tensors of a checkpoint, so that files of any name and SAMs of any size load; the classes are the package's own.

source  Kirillov et al. 2023, "Segment Anything"
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

NO_SAM = "is not a Segment Anything checkpoint (vit_h, vit_l, vit_b; a SAM 2 is loaded from its transformers folder)"
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
        size = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        encoder, decoder = "image_encoder", "mask_decoder"
        try:
            width, _, patch, _ = size[f"{encoder}.patch_embed.proj.weight"]
            grid = size[f"{encoder}.pos_embed"][1]
            head = size[f"{encoder}.blocks.0.attn.rel_pos_h"][1]
            depth = _count(size, rf"{encoder}\.blocks\.(\d+)\.attn\.rel_pos_h")
            # A relative position table has 2n - 1 rows for windows of n patches; a global block's window is the grid.
            spans = [(size[f"{encoder}.blocks.{i}.attn.rel_pos_h"][0] + 1) // 2 for i in range(depth)]
            query = size[f"{decoder}.transformer.layers.0.cross_attn_token_to_image.q_proj.weight"]
            return cls(
                image_size=grid * patch,
                patch=patch,
                width=width,
                depth=depth,
                heads=width // head,
                window=min(spans) if min(spans) < grid else 0,
                global_blocks=tuple(i for i, span in enumerate(spans) if span == grid),
                mlp=size[f"{encoder}.blocks.0.mlp.lin1.weight"][0],
                prompt_width=size[f"{encoder}.neck.0.weight"][0],
                mask_channels=size["prompt_encoder.mask_downscaling.3.weight"][0],
                decoder_depth=_count(size, rf"{decoder}\.transformer\.layers\.(\d+)\.mlp\.lin1\.weight"),
                decoder_mlp=size[f"{decoder}.transformer.layers.0.mlp.lin1.weight"][0],
                decoder_downsample=query[1] // query[0],
                masks=size[f"{decoder}.mask_tokens.weight"][0] - 1,
                score_depth=_count(size, rf"{decoder}\.iou_prediction_head\.layers\.(\d+)\.weight"),
                score_width=size[f"{decoder}.iou_prediction_head.layers.0.weight"][0],
            )
        except KeyError as error:
            raise ValueError(f"{NO_SAM}: it has no {error.args[0]}") from None


def _count(shapes: Mapping[str, tuple], pattern: str) -> int:
    return len({match.group(1) for name in shapes if (match := re.fullmatch(pattern, name))})


def make_sam(a: Architecture) -> nn.Module:
    """A SAM of these sizes with random weights, in evaluation mode.

    Raises:
        ValueError: segment-anything or torchvision cannot be imported.
    """
    modeling = package().modeling
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
    want = {name: tensor.shape for name, tensor in sam.state_dict().items()}
    if odd := sorted(set(want) ^ set(weights)) or [name for name in want if want[name] != weights[name].shape]:
        raise ValueError(
            f"{NO_SAM}: of the {len(want)} tensors of one with its sizes, {len(odd)} are missing, beyond them or of "
            f"another shape, {odd[0]} among them"
        )
    sam.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    return sam.requires_grad_(False)


def package():
    """segment-anything.

    Raises:
        ValueError: it or torchvision cannot be imported.
    """
    try:
        import segment_anything
    except (ImportError, RuntimeError, OSError) as error:  # a torchvision of another torch fails in its own ways
        raise ValueError(
            f"SAM needs the packages segment-anything and torchvision, and importing them failed ({error}): "
            "install the pack's requirements.txt, and the torchvision that belongs to this torch"
        ) from error
    return segment_anything
