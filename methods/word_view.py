"""Where a clip's own attention puts the words of its prompt: what FateZero's mask is cut from.

paper    FateZero, Qi et al. 2023 (arXiv 2303.09535), section 3.3
needs    a model with cross-attention; the source's trajectory
gives    maps to look at, and to choose a threshold by
differs  nothing: they are the maps that `fate_zero` reads
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.autograd import plain_torch
from ..engine.call import Evaluation, Run
from ..engine.evaluate import evaluate_with
from ..engine.monitor import SILENT, Monitor
from ..engine.plan import PLAIN
from ..engine.ports import Backbone, Predict
from ..engine.source import Trajectory
from ..engine.words import SOURCE
from . import words as text
from .fate_zero import FateZero, Watch

COLOR = (1.0, 0.25, 0.2)


@plain_torch
def word_maps(
    backbone: Backbone,
    trajectory: Trajectory,
    words: Sequence[str],
    *,
    noise: float = 0.5,
    monitor: Monitor = SILENT,
) -> Tensor:
    """[W, F, h, w] float32: the source's attention to each word, as FateZero's mask is made of.

    Args:
        words: of the source's prompt.
        noise: where on the trajectory to look, 0 almost clean, 1 the noisiest level.

    Raises:
        ValueError: a word that the prompt does not have, none at all, or a model without cross-attention.
    """
    if not words:
        raise ValueError(f"name the words to look for: some of '{trajectory.prompt.text}'")
    if not 0 <= noise <= 1:
        raise ValueError(f"want noise in 0..1, got {noise}")
    backbone.require(trajectory)
    steps, control = trajectory.schedule.steps, FateZero(words=tuple(words), key_frames="own")
    control.check(trajectory, backbone.denoiser, None)
    level = max(1, round(noise * steps))
    watches = [Watch(text.positions(trajectory.prompt, word)) for word in words]

    def body(predict: Predict) -> None:
        for watch in watches:
            monitor.check()
            evaluation = Evaluation(
                trajectory.at(level).to(backbone.denoiser.device)[None],
                trajectory.schedule.label(level),
                (trajectory.prompt,),
                (SOURCE,),
                image=trajectory.at(0) if backbone.denoiser.sees_source else None,
                run=Run(steps - level, steps, monitor),
            )
            evaluate_with(predict, evaluation.share(control, watch), PLAIN.then(control))

    reserve = backbone.denoiser.bytes(1, trajectory.shape[0], tuple(trajectory.shape[-2:]))
    told = {"reserve": reserve, "beside": trajectory.beside}
    backbone.denoiser.session([trajectory.prompt], trajectory.at(0), trajectory.schedule, body, **told)
    chosen = [watch.chosen() for watch in watches]
    return torch.stack([torch.stack([found[f] for f in sorted(found)]) for found in chosen]).float().cpu()


def words_mask(maps: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """[F, H, W] float32 0 or 1: FateZero's own mask of all these words together, where the edit keeps its attention."""
    return FateZero(threshold=threshold).mask(maps.sum(0), size).float()


def shares(maps: Tensor) -> Tensor:
    """[W, F, h, w] in 0..1: what a threshold is compared with, word by word."""
    spread = F.max_pool2d(maps, 3, stride=1, padding=1)
    return spread / spread.amax((2, 3), keepdim=True).clamp(min=1e-12)


def paint_mask(frames: Tensor, mask: Tensor) -> Tensor:
    """Frames [F, H, W, 3] with a mask [F, H, W] in red over them."""
    return torch.lerp(frames, torch.tensor(COLOR), 0.55 * mask[..., None])


def source_pictures(backbone: Backbone, trajectory: Trajectory) -> Tensor:
    """[F, H, W, 3] the clip as its own latents decode."""
    return backbone.codec.decode(backbone.codec.unscale(trajectory.at(0)))
