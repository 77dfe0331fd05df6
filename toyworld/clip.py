"""The clip that ships with the workflows: where it comes from, what its edit should give, and video files.

    python -m weft.toyworld.clip    # writes workflows/toy_clip.mp4

Clip and edit are drawn from a seed that no model is trained on, so the truth of the edit is known to the pixel.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from . import world
from .world import Clips

SEED = 4345  # the models are trained on seed 1234
EDIT = ("shape", "color")
FPS = 8
NEARLY_LOSSLESS = {"crf": "8", "preset": "veryslow"}
# Colors at the full resolution: readers differ in how they fill in what 4:2:0 leaves out, ComfyUI's from version to
# version, by half the range at the edges of a sprite.
WHOLE = "yuv444p"

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
CLIP = WORKFLOWS / "toy_clip.mp4"


def source_clip() -> Clips:
    """The one clip that ships, as a batch of one."""
    return world.draw(1, torch.Generator().manual_seed(SEED))


def edited_clip() -> Clips:
    """The clip after the edit that the workflows ask for."""
    return world.edit(source_clip(), torch.Generator().manual_seed(SEED), EDIT)


def captions() -> tuple[str, str]:
    """What the prompts say of the source and of the edit."""
    return world.captions(source_clip())[0], world.captions(edited_clip())[0]


def instruction() -> str:
    """What an instruction model is told for the same edit."""
    return world.instructions(source_clip(), edited_clip())[0]


def edit_mask() -> Tensor:
    """[F, H, W] of 0 and 1: where the old or the new sprite is, which is all that an edit may change."""
    old, new = (world.sprite_alpha(clips)[0] for clips in (source_clip(), edited_clip()))
    return ((old > 0) | (new > 0)).float()


def frames_of(clips: Clips) -> Tensor:
    """[F, H, W, 3] in 0..1, as ComfyUI passes the frames of one clip about."""
    video, _ = world.render(clips[:1])
    return video[0].movedim(1, -1)


def write_video(path: Path, frames: Tensor, options: dict[str, str] | None = None, pixels: str = "yuv420p") -> None:
    """Writes frames [F, H, W, 3] in 0..1 as H.264 that browsers play; without options, as ComfyUI's SaveVideo does."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream("h264", rate=Fraction(FPS), options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        for picture in (frames * 255).clamp(0, 255).byte().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def read_video(path: Path) -> Tensor:
    """[F, H, W, 3] in 0..1, the very numbers that ComfyUI's LoadVideo gives."""
    import av

    with av.open(str(path)) as container:
        return torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) / 255.0 for f in container.decode(video=0)])


def main() -> None:
    write_video(CLIP, frames_of(source_clip()), NEARLY_LOSSLESS, WHOLE)
    source, edit = captions()
    print(f"{CLIP.name}: {source}\nedit: {edit}")


if __name__ == "__main__":
    main()
