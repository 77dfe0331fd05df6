"""What the browser's widgets show: small files in ComfyUI's temp folder, named in a node's answer, and a few facts."""

from __future__ import annotations

import json
from typing import Any

from comfy_api.v0_0_2 import io, ui

PREFIX = "weft_"


def pictures(**clips: Any) -> dict[str, list]:
    """An answer that names the PNG files of clips [F, H, W, 3], or [F, H, W, 1] in gray, by what they show.

    They carry no workflow: the page has it already.
    """
    return {
        f"{PREFIX}{name}": ui.ImageSaveHelper.save_images(
            clip.expand(*clip.shape[:3], 3), "weft", io.FolderType.temp, cls=None, compress_level=1
        )
        for name, clip in clips.items()
    }


def facts(**values: Any) -> dict[str, list]:
    """An answer that says what can be written as JSON."""
    return {f"{PREFIX}facts": [json.dumps(values)]}


def answer(shown: Any, **more: list) -> dict[str, Any]:
    """ComfyUI's own preview, for pages without the widgets and for scripts, with what the widgets want."""
    return {**shown.as_dict(), **more}
