"""The pictures of the help pages: each node as ComfyUI shows it after a run of the sample clip.

    python -m weft.workflows.build.pictures                     # all, in a ComfyUI of its own
    python -m weft.workflows.build.pictures --only WeftRegion   # of nodes whose ids have this in them

Under a method's node stand frames from before and after, out of the thumbnail of the workflow that it is in.
It needs a browser: see `browser.py`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ...headless.client import Server
from ...toyworld import clip
from .__main__ import FOLDER, server_of_our_own
from .browser import obstacle, visit
from .cards import SIDE, TOP
from .graphs import GRAPHS
from .parts import IMAGE_MODEL, Graph, node, prompts, source, wire

PAGES = FOLDER.parent / "web" / "docs"
WIDTH = 560  # pixels, twice what a sidebar shows
QUALITY = 80


def viewers() -> Graph:
    """The nodes that no workflow has."""
    model, latent, frames = wire("Model"), wire("Encode"), wire("Source frames", "images")
    thing = " ".join(clip.captions()[0].split()[1:3])
    told = {"model": model, "latent": latent, "source_prompt": wire("Source prompt")}
    seen = {"model": model, "trajectory": wire("Invert")}
    return {
        "Source": source(IMAGE_MODEL),
        "Prompts": prompts(),
        "Video": {
            "Video model": node("WeftLoadModel", model="toyworld/video", dtype="auto"),
            "Video latents": node("WeftEncodeFrames", model=wire("Video model"), images=frames),
            "Video prompt": node("WeftEncodePrompt", model=wire("Video model"), text=clip.captions()[0]),
            "Video inverted": node(
                "WeftDDIMInversion",
                model=wire("Video model"),
                latent=wire("Video latents"),
                source_prompt=wire("Video prompt"),
            ),
            "Score": node("WeftPreviewSTRScore", model=wire("Video model"), trajectory=wire("Video inverted")),
        },
        "See": {
            "Invert": node("WeftDDIMInversion", **told),
            "Words": node("WeftPreviewWords", **seen, words=thing),
            "Find": node("WeftCorrespondence", model=model, latent=latent),
            "Matches": node("WeftPreviewCorrespondence", correspondence=wire("Find"), images=frames),
            "Compare": node("WeftCompareVideos", a=frames, b=wire("Matches"), fps=8.0),
        },
    }


def unrun() -> Graph:
    """Nodes that want files of yours, or show nothing."""
    model = wire("Model")
    return {
        "Source": source(IMAGE_MODEL),
        "Load": {
            "Prompt file": node("WeftLoadPrompt", model=model),
            "Trajectory file": node("WeftLoadTrajectory", model=model),
            "Adapter": node("WeftLoadAdapter", model=model),
            "CLIP": node("WeftLoadCLIP", model="toyworld/clip"),
        },
        "Do": {
            "Keep": node("WeftSaveTrajectory", trajectory=wire("Trajectory file")),
            "Bases": node("WeftSTEMAttention"),
        },
    }


def fitted() -> Graph:
    """A clip made to fit a model, and put back."""
    frames, fps = wire("Source frames", "images"), wire("Source frames", "fps")
    return {
        "Source": source(IMAGE_MODEL),
        "Fit": {
            "Prepare": node("WeftPrepareClip", images=frames, fps=fps, model=wire("Model"), frames=6, side=48),
            "Restore": node(
                "WeftRestoreClip", images=wire("Prepare", "images"), original=frames, fit=wire("Prepare", "fit")
            ),
            "Compare": node("WeftCompareVideos", a=frames, b=wire("Restore"), fps=fps),
        },
    }


def parts() -> Graph:
    """Parts of a clip on their way."""
    frames = wire("Source frames", "images")
    part = {"images": wire("Part", "images"), "chunk": wire("Part", "chunk")}
    return {
        "Source": source(),
        "Cut": {
            "Chunks": node("WeftChunkPlan", images=frames, count=2),
            "Part": node("WeftChunkSelect", chunks=wire("Chunks"), images=frames),
        },
        "Keep": {
            "Stamp": node("WeftChunkStamp", **part),
            "Keep": node("WeftSavePart", **part),
            "All parts": node("WeftLoadParts", chunks=wire("Chunks")),
        },
    }


Place = tuple[str, str]  # a graph, and the title of a node in it
RUN: dict[str, Place] = {  # node -> where, in graphs that are run
    "WeftSAMMask": ("mask_by_click", "Click"),
    "WeftTrackMask": ("mask_by_click", "Track"),
    "WeftTextToBoxes": ("mask_by_text", "Find"),
    "WeftCoupledEdit": ("coupled_edit", "Coupled Edit"),
    "WeftCompareVideos": ("coupled_edit", "Compare"),
    "WeftEditCandidates": ("via_global", "Candidates"),
    "WeftTestTimeAdaptation": ("via_global", "Adapt"),
    "WeftPreviewSTRScore": ("viewers", "Score"),
    "WeftPreviewWords": ("viewers", "Words"),
    "WeftPreviewCorrespondence": ("viewers", "Matches"),
    "WeftEditSampler": ("str_match", "Sample"),
    "WeftPrepareClip": ("fitted", "Prepare"),
}
AS_THEY_ARE: dict[str, Place] = {  # node -> where, in graphs that are not
    "WeftLoadModel": ("str_match", "Model"),
    "WeftEncodePrompt": ("str_match", "Target prompt"),
    "WeftEncodeFrames": ("str_match", "Encode"),
    "WeftDecodeFrames": ("str_match", "Decode"),
    "WeftDDIMInversion": ("str_match", "Invert"),
    "WeftSTRLatentOptimizer": ("str_match", "STR-Match"),
    "WeftEvaluateEdit": ("str_match", "Evaluate"),
    "WeftLatentBlend": ("str_match_masked", "Blend"),
    "WeftLoadSAM": ("mask_by_click", "SAM"),
    "WeftRegion": ("two_edits", "Thing"),
    "WeftAddNoise": ("via_local", "Noise"),
    "WeftGatherSwapAttention": ("via_local", "Gather-swap"),
    "WeftChunkPlan": ("via_long", "Chunks"),
    "WeftChunkSelect": ("via_long", "Part"),
    "WeftChunkMerge": ("via_long", "Merge"),
    "WeftCorrespondence": ("cove", "Find"),
    "WeftCorrespondenceAttention": ("cove", "Along matches"),
    "WeftSpatioTemporalAttention": ("cove", "Over the clip"),
    "WeftFeatureInjection": ("cove", "Inject"),
    "WeftSTEMInversion": ("stem_tokenflow", "Invert"),
    "WeftTokenFlow": ("stem_tokenflow", "TokenFlow"),
    "WeftFateZero": ("stem_fatezero", "FateZero"),
    "WeftFromComfyModel": ("native_wan_coupled", "Weft model"),
    "WeftLoadAnimateDiff": ("str_match_animatediff", "Model"),
    "WeftLoadPrompt": ("unrun", "Prompt file"),
    "WeftLoadTrajectory": ("unrun", "Trajectory file"),
    "WeftSaveTrajectory": ("unrun", "Keep"),
    "WeftLoadAdapter": ("unrun", "Adapter"),
    "WeftLoadCLIP": ("unrun", "CLIP"),
    "WeftSTEMAttention": ("unrun", "Bases"),
    "WeftRestoreClip": ("fitted", "Restore"),
    "WeftChunkStamp": ("parts", "Stamp"),
    "WeftSavePart": ("parts", "Keep"),
    "WeftLoadParts": ("parts", "All parts"),
}
EXTRA = {
    "viewers": viewers,
    "unrun": unrun,
    "fitted": fitted,
    "parts": parts,
}
METHODS = {  # what makes the difference in its workflow
    "WeftSTRLatentOptimizer", "WeftLatentBlend", "WeftCoupledEdit", "WeftRegion", "WeftGatherSwapAttention",
    "WeftCorrespondenceAttention", "WeftSpatioTemporalAttention", "WeftFeatureInjection", "WeftTokenFlow",
    "WeftFateZero", "WeftSTEMInversion",
}  # fmt: skip


def take(server: Server, only: str = "") -> None:
    """Writes `web/docs/pictures/<node>.webp`."""
    places = {node: place for node, place in (RUN | AS_THEY_ARE).items() if only in node}
    with tempfile.TemporaryDirectory() as folder:
        still: list[dict[str, Any]] = []
        for graph in dict.fromkeys(graph for graph, _ in places.values()):
            shots = [
                {"picture": title, "path": str(Path(folder, f"{node_id}.png"))}
                for node_id, (where, title) in places.items()
                if where == graph
            ]
            build = {"build": EXTRA[graph]() if graph in EXTRA else GRAPHS[graph]}
            if any(RUN.get(node_id, ("",))[0] == graph for node_id in places):
                # In a page of its own: ComfyUI shows a node what a node of its number has shown before.
                visit(server.url, [build, {"run": {}}, *shots], sharp=True)
            else:
                still += [build, *shots]
        if still:
            visit(server.url, still, sharp=True)
        (PAGES / "pictures").mkdir(exist_ok=True)
        for node_id, (graph, _) in places.items():
            below = FOLDER / f"{graph}.jpg" if node_id in METHODS else None
            _kept(Path(folder, f"{node_id}.png"), PAGES / "pictures" / f"{node_id}.webp", below)


def _kept(shot: Path, path: Path, card: Path | None) -> None:
    """A screenshot as a page has it, over the frames of a workflow's card."""
    from PIL import Image

    parts = [Image.open(shot).convert("RGB")]
    if card is not None:
        parts.append(Image.open(card).crop((0, TOP, SIDE, TOP + SIDE // 2)))
    parts = [part.resize((WIDTH, round(part.height * WIDTH / part.width)), Image.Resampling.LANCZOS) for part in parts]
    made = Image.new("RGB", (WIDTH, sum(part.height for part in parts)))
    made.paste(parts[0])
    if card is not None:
        made.paste(parts[1], (0, parts[0].height))
    made.save(path, quality=QUALITY, method=6)
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", help="a running ComfyUI with this pack (default: start one)")
    parser.add_argument("--only", default="", help="nodes whose ids have this in them (default: all)")
    options = parser.parse_args()
    if reason := obstacle():
        sys.exit(f"weft: {reason}")
    with nullcontext(Server(options.server)) if options.server else server_of_our_own() as server:
        take(server, options.only)


if __name__ == "__main__":
    main()
