"""ComfyUI's side of a run: its progress bar, its previews and its cancel button."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import comfy.model_management
import comfy.utils
from PIL import Image
from server import PromptServer
from torch import Tensor

from ..backbones.preview import few
from ..engine.monitor import Recording

check = comfy.model_management.throw_exception_if_processing_interrupted
PREVIEW_SIZE = 512  # pixels, the longer side
LOOP = 8  # frames of an animated preview
LOOP_SIZE = 192  # pixels, its longer side


def tell(event: str, **told: object) -> None:
    """Sends the page that queued this run a message of the node that is running."""
    page = PromptServer.instance
    page.send_sync(event, {"node": page.last_node_id, **told}, page.client_id)


def clip_tokenizer() -> Path:
    """The folder of ComfyUI's own copy of CLIP's tokenizer."""
    return Path(comfy.model_management.__file__).with_name("sd1_tokenizer")


class NodeMonitor(Recording):
    """Progress and previews of one node's run; raises ComfyUI's own exception when the user cancels."""

    def __init__(self, total: int, pictures: Callable[[Tensor], Tensor] | None = None):
        """
        ComfyUI's own preview is one still picture; our widgets are sent a loop of frames beside it.

        Args:
            pictures: latents [F, C, h, w] -> frames [F, h, w, 3] in 0..1, for the live preview. It is asked for a
                few frames of the clip alone.
        """
        super().__init__()
        self.bar, self.pictures, self.total, self.told = comfy.utils.ProgressBar(total), pictures, total, 0

    def check(self) -> None:
        check()

    def progress(self, done: int, total: int, preview: Tensor | None = None) -> None:
        still, loop = None, []
        if preview is not None and self.pictures is not None:
            frames = self.pictures(few(preview, LOOP))
            still, loop = ("JPEG", _strip(few(frames)), PREVIEW_SIZE), [_in_text(frame) for frame in frames]
        self.bar.update_absolute(done, total, still)
        record = self.records[-1] if len(self.records) > self.told else None
        self.told = len(self.records)
        tell("weft.run", done=done, total=total, record=record, frames=loop)
        check()


def _in_text(frame: Tensor) -> str:
    """A frame [h, w, 3] as the address of a small picture that holds it."""
    picture, file = Image.fromarray((frame * 255).byte().cpu().numpy()), BytesIO()
    picture.thumbnail((LOOP_SIZE, LOOP_SIZE))
    picture.save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"


def _strip(frames: Tensor) -> Image.Image:
    """Frames side by side, enlarged to be seen."""
    picture = Image.fromarray((frames.movedim(0, 1).flatten(1, 2) * 255).byte().cpu().numpy())
    grow = max(1, PREVIEW_SIZE // max(picture.size))
    return picture.resize((picture.width * grow, picture.height * grow), Image.Resampling.NEAREST)
