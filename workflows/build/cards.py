"""The thumbnails of ComfyUI's template browser, which shows nothing else of a pack's workflow but its file name, in no
order: each says what the workflow does, under frames of the source and of the edit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, cat

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE, TOP = 400, 44  # pixels; the page lays its own label over the top
COLUMNS = 4  # frames in a row
INK, GROUND = (235, 235, 235), (24, 24, 27)
NOT_HERE = "Needs {}. No picture by it was made here: this is the graph."

CARDS = {  # workflow -> title, and what it does
    "str_match": ("Edit a clip", "Start here. STR-Match: new words for what moves; layout and motion stay."),
    "str_match_masked": (
        "Edit one thing only",
        "STR-Match inside the mask of what you click; all else stays as it is.",
    ),
    "coupled_edit": ("Edit without inversion", "One node from the clip to the edit (FlowEdit, FlowAlign). Fast."),
    "two_edits": ("Two edits in one run", "The thing and the rest, each with a mask and a prompt of its own."),
    "remove_object": ("Take a thing away", "Click it: its place is filled with what you say is there."),
    "add_object": ("Put a thing in", "The recipe. The toy model has never seen two things and adds none."),
    "mask_by_click": ("Mask by a click", "Click a thing: its mask in every frame (SAM, SAM 2)."),
    "mask_by_text": ("Mask by a word", "Name a thing: its mask in every frame (Grounding DINO, OWLv2, SAM)."),
    "via_local": ("Instruct: one thing", "VIA: say what to do, and click where. The rest stays."),
    "via_global": ("Instruct: all of it", "VIA: choose the best of some candidates; the model learns from it."),
    "via_long": ("Instruct: a long clip", "VIA, some frames at a time: memory stays about the same."),
    "via_long_distributed": ("Long clip, several machines", "VIA with ComfyUI-Distributed, which you install."),
    "cove": ("An image model, steadied", "COVE: attention follows what belongs together in all frames."),
    "stem_tokenflow": ("STEM and TokenFlow", "Keyframes are edited; the others follow the motion of the source."),
    "stem_fatezero": ("STEM and FateZero", "The edit attends as the source does, but where the thing is."),
    "str_match_lavie": ("STR-Match on LaVie", NOT_HERE.format("lavie_base.pt")),
    "str_match_zeroscope": ("STR-Match on Zeroscope", NOT_HERE.format("zeroscope_v2_576w")),
    "str_match_animatediff": ("STR-Match on AnimateDiff", NOT_HERE.format("an SD 1.5 and v3_sd15_mm.ckpt")),
    "str_match_cogvideox": ("STR-Match on CogVideoX", NOT_HERE.format("CogVideoX-5b")),
    "cove_sd": ("COVE on Stable Diffusion", NOT_HERE.format("stable-diffusion-v1-5")),
    "stem_tokenflow_sd": ("STEM, TokenFlow on SD", NOT_HERE.format("stable-diffusion-v1-5")),
    "via_instructpix2pix": ("VIA on InstructPix2Pix", NOT_HERE.format("instruct-pix2pix")),
    "native_sd_cove": ("COVE, your checkpoint", NOT_HERE.format("a Stable Diffusion 1.5 checkpoint")),
    "native_ip2p_via": ("VIA, your checkpoint", NOT_HERE.format("an InstructPix2Pix checkpoint")),
    "native_wan_str_match": ("STR-Match on Wan 2.1", NOT_HERE.format("ComfyUI's Wan 2.1 files")),
    "native_wan_coupled": ("Wan 2.1, no inversion", NOT_HERE.format("ComfyUI's Wan 2.1 files")),
    "native_ltx_coupled": ("LTX-Video, no inversion", NOT_HERE.format("ComfyUI's LTX-Video files")),
    "native_hunyuan_coupled": ("Hunyuan, no inversion", NOT_HERE.format("ComfyUI's HunyuanVideo files")),
}


def shows_its_graph(name: str) -> bool:
    """Whether a workflow wants a model that does not ship, so that its graph is all there is to show."""
    return CARDS[name][1].startswith(NOT_HERE.split("{")[0])


def rows(source: Tensor, edit: Tensor) -> Image:
    """Frames of a source and an edit, [F, H, W, 3] in 0..1, one above the other."""
    from PIL import Image

    sheet = cat([cat(list(frames[:: len(frames) // COLUMNS][:COLUMNS]), 1) for frames in (source, edit)])
    return Image.fromarray((sheet * 255).round().byte().numpy())


def card(name: str, picture: Image) -> Image:
    """A square of a workflow's picture, half as high as wide, and its words."""
    from PIL import Image, ImageDraw, ImageFont

    title, text = CARDS[name]
    made = Image.new("RGB", (SIDE, SIDE), GROUND)
    size = SIDE, SIDE // 2
    crisp = Image.Resampling.NEAREST if picture.width <= SIDE else Image.Resampling.LANCZOS
    made.paste(picture.convert("RGB").resize(size, crisp), (0, TOP))
    draw = ImageDraw.Draw(made)
    if not shows_its_graph(name):
        for label, y in (("before", TOP + 2), ("after", TOP + SIDE // 4 + 2)):
            font = ImageFont.load_default(15)
            draw.rectangle(_around(draw.textbbox((6, y), label, font)), GROUND)
            draw.text((6, y), label, INK, font)
    y = TOP + SIDE // 2 + 12
    draw.text((14, y), title, INK, ImageFont.load_default(27))
    for i, line in enumerate(_lines(text, draw, ImageFont.load_default(19), SIDE - 28)):
        draw.text((14, y + 40 + 24 * i), line, INK, ImageFont.load_default(19))
    return made


def _around(box: tuple[float, ...]) -> tuple[float, ...]:
    left, top, right, bottom = box
    return left - 4, top - 3, right + 4, bottom + 3


def _lines(text: str, draw, font, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = lines[:-1] + [longer] if draw.textlength(longer, font) <= width else [*lines, word]
    return lines
