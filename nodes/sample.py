"""The sample clip, where ComfyUI's own Load Video finds it: so that a workflow runs before anything is uploaded."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import folder_paths

log = logging.getLogger(__name__)
CLIP = Path(__file__).resolve().parents[1] / "workflows" / "toy_clip.mp4"


def put_sample() -> None:
    """Copies the clip into ComfyUI's input folder, unless a file of its name is there. Nothing else is written."""
    there = Path(folder_paths.get_input_directory(), CLIP.name)
    if there.exists():
        return
    try:
        shutil.copyfile(CLIP, there)
    except OSError as error:
        log.warning("Weft: the sample clip cannot be put into %s (%s): upload %s yourself", there.parent, error, CLIP)
