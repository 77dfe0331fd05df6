"""SAM 2 and 2.1 of transformers, from a folder. The video model's image encoder serves single frames, too.

source  Ravi et al. 2024, "SAM 2: Segment Anything in Images and Videos"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.diffusers.loading import frozen_module, loaded, read_json, require_readable_weights
from ..backbones.memory import Memory
from ..engine.monitor import Monitor
from .ports import Candidates, Prompts

FAMILIES = ("sam2_video", "sam2")
THING = 1  # the id of the one object that is followed


def load_sam2(folder: Path, name: str, dtype: torch.dtype, memory: Memory) -> Sam2Segmenter:
    """See `sam.load_segmenter`."""
    config = read_json(folder / "config.json", "a transformers model folder has one")
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(
            f"'{folder.name}' holds a {family}: want the transformers folder of a SAM 2 or 2.1, as sam2.1-hiera-tiny"
        )
    require_readable_weights(folder)
    try:
        from transformers import Sam2Model, Sam2VideoModel  # noqa: F401  an old version has neither
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"SAM 2 needs transformers 4.56 or later, or use a SAM checkpoint ({error})") from None
    import transformers

    image = frozen_module(transformers, "Sam2Model", folder, dtype=dtype)
    video = processor = None
    if family == "sam2_video":
        video = frozen_module(transformers, "Sam2VideoModel", folder, dtype=dtype)
        image.vision_encoder = video.vision_encoder  # the bulk of both, once
        processor = loaded(folder, transformers, "Sam2VideoProcessor")
    return Sam2Segmenter(name, image, video, loaded(folder, transformers, "Sam2Processor"), processor, memory)


class Sam2Segmenter:
    """SAM 2: single frames by prompts, and clips by its memory where the folder holds the video model."""

    def __init__(self, name: str, image, video, image_processor, video_processor, memory: Memory):
        self.name, self.memory = name, memory
        self.image, self.video = image, video
        self.image_processor, self.video_processor = image_processor, video_processor
        self.parts = nn.ModuleList([part for part in (image, video) if part is not None])
        self.dtype = next(image.parameters()).dtype

    @property
    def follows(self) -> bool:
        return self.video is not None

    @torch.inference_mode(False)
    @torch.no_grad()
    def look(self, frame: Tensor) -> Callable[[Prompts], Candidates]:
        """See `Segmenter`."""
        size = tuple(frame.shape[:2])
        with self.memory.resident(self.parts):
            seen = self.image.get_image_embeddings(self._pixels(self.image_processor, frame))

        @torch.inference_mode(False)
        @torch.no_grad()
        def ask(prompts: Prompts) -> Candidates:
            with self.memory.resident(self.parts):
                answer = self.image(
                    image_embeddings=list(seen), multimask_output=prompts.ambiguous, **self._encoded(prompts, size)
                )
            raw, scores = answer.pred_masks[0, 0].float().cpu(), answer.iou_scores[0, 0].float().cpu()
            return Candidates(_resized(raw, size) > 0, scores, raw)

        return ask

    def follow(self, frames: Tensor, masks: dict[int, Tensor], monitor: Monitor) -> Iterator[tuple[int, Tensor, float]]:
        """See `Segmenter`. Frames are streamed, and of the past only what the model looks at is kept."""
        device = self.memory.device
        session = self.video_processor.init_video_session(inference_device=device, dtype=self.dtype)
        for k, mask in sorted(masks.items()):
            monitor.check()
            self.video_processor.add_inputs_to_inference_session(session, k, THING, input_masks=mask)
            self._step(session, frames, k, reverse=False)
        known, first = set(masks), min(masks)
        for order, reverse in ((range(first + 1, len(frames)), False), (range(first - 1, -1, -1), True)):
            session.output_dict_per_obj[0]["non_cond_frame_outputs"].clear()
            for k in (k for k in order if k not in known):
                monitor.check()
                yield (k, *self._step(session, frames, k, reverse))

    def _step(self, session, frames: Tensor, k: int, reverse: bool) -> tuple[Tensor, float]:
        """(mask [H, W] bool, confidence) of one frame, which the session then forgets."""
        with torch.inference_mode(False), torch.no_grad(), self.memory.resident(self.parts):
            pixels = self._pixels(self.video_processor, frames[k])
            answer = self.video(session, frame=pixels, frame_idx=k, reverse=reverse)
        self._forget(session, k)
        logits = _resized(answer.pred_masks.float().cpu()[:, 0], tuple(frames.shape[1:3]))[0]
        return logits > 0, answer.object_score_logits.float().sigmoid().flatten()[0].item()

    def _forget(self, session, k: int) -> None:
        """Drops the frame's pixels, large masks that nothing reads again, and frames beyond the model's reach."""
        session.processed_frames.pop(k, None)
        reach = max(self.video.config.num_maskmem, self.video.config.max_object_pointers_in_encoder)
        outputs = session.output_dict_per_obj[0]
        for old in [old for old in outputs["non_cond_frame_outputs"] if abs(old - k) >= reach]:
            del outputs["non_cond_frame_outputs"][old]
        for kept in (*outputs["cond_frame_outputs"].values(), *outputs["non_cond_frame_outputs"].values()):
            kept.pop("high_res_masks", None)

    def _pixels(self, processor, frame: Tensor) -> Tensor:
        """[1, 3, S, S]: a frame as the model reads it."""
        picture = (frame.cpu().float() * 255).round().clamp(0, 255).byte().movedim(-1, 0)
        return processor(images=picture, return_tensors="pt").pixel_values.to(self.memory.device, self.dtype)

    def _encoded(self, prompts: Prompts, size: tuple[int, int]) -> dict[str, Tensor]:
        """A prompt as the model takes it: in its own square picture, whatever the frame's shape."""
        side = self.image.config.prompt_encoder_config.image_size
        scale = torch.tensor([side / size[1], side / size[0]])

        def places(points) -> Tensor:
            return ((torch.tensor(points) + 0.5) * scale - 0.5).to(self.memory.device, self.dtype)

        inputs = {}
        if points := (*prompts.points, *prompts.not_points):
            labels = [1] * len(prompts.points) + [0] * len(prompts.not_points)
            inputs["input_points"] = places(points)[None, None]
            inputs["input_labels"] = torch.tensor([[labels]], dtype=torch.int32, device=self.memory.device)
        if prompts.box is not None:
            inputs["input_boxes"] = places((prompts.box[:2], prompts.box[2:])).reshape(1, 1, 4)
        if prompts.guess is not None:
            inputs["input_masks"] = prompts.guess[None, None].to(self.memory.device, self.dtype)
        return inputs


def _resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """[M, h, w] -> [M, H, W]."""
    return F.interpolate(logits[None], size, mode="bilinear")[0]
