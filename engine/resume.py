"""What an inversion has so far, on disk, so that it goes on where it was stopped: by a cancel, an error or a kill.

A folder for each inversion, named by a digest of all that its bits depend on. In it a file for each level that the
trajectory keeps, and one with where it stands: the last latents and the network's last output, from which the next
step is the very one that it would have been.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .digest import digest
from .tensor_file import in_units, read_tensors, write_tensors

log = logging.getLogger(__name__)
STATE = "state.safetensors"


@dataclass
class Resume:
    """Levels on disk. Without a folder it remembers nothing."""

    folder: Path | None
    every: int  # so many levels are kept

    @classmethod
    def of(cls, bits: Any, folder: Path | None, every: int) -> Resume:
        """For an inversion whose bits depend on these values. ValueError if `digest` cannot read one of them."""
        return cls(None if folder is None else Path(folder) / digest(bits, every), every)

    def read(self, levels: Tensor) -> tuple[int, Tensor | None, Tensor | None]:
        """(how many steps are done, the latents after them, the last output), and their levels into `levels`.

        What is not whole counts as not there.
        """
        if self.folder is None:
            return 0, None, None
        size = in_units((len(levels) + 1) * levels[0].numel() * 4)  # each but the clean one, and the state's two
        log.info("every step of the inversion is kept in '%s': %s in the end", self.folder, size)
        if not (self.folder / STATE).is_file():
            return 0, None, None
        try:
            state, told = read_tensors(self.folder / STATE)
            done, z = int(told["level"]), state["latents"]
            kept = [read_tensors(self._file(k))[0]["latents"] for k in range(1, done // self.every + 1)]
            if any(t.shape != levels[0].shape for t in (z, *kept)) or len(kept) >= len(levels):
                raise ValueError("it is of another clip")
        except (ValueError, KeyError) as error:
            log.warning("the inversion in '%s' cannot go on (%s): it starts anew", self.folder, error)
            return 0, None, None
        for k, level in enumerate(kept, 1):
            levels[k] = level
        log.info("going on with the inversion in '%s' after step %d", self.folder, done)
        return done, z, state.get("output")

    def write(self, level: int, z: Tensor, output: Tensor) -> None:
        """After a step: first the level, then that it is there. A full disk costs the resuming, not the inversion."""
        if self.folder is None:
            return
        try:
            if level % self.every == 0:
                write_tensors(self._file(level // self.every), {"latents": z}, {})
            write_tensors(self.folder / STATE, {"latents": z, "output": output}, {"level": str(level)})
        except OSError as error:
            log.warning("the inversion goes on and can not be resumed from here: %s", error)
            self.folder = None

    def _file(self, kept: int) -> Path:
        return self.folder / f"level_{kept:05}.safetensors"
