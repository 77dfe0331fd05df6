"""The palette, in the order a user meets it. A node whose import fails is named in the log and leaves the others."""

from __future__ import annotations

import logging
from importlib import import_module

from comfy_api.v0_0_2 import ComfyExtension

log = logging.getLogger(__name__)

NODES = {  # module -> nodes in it
    "load": ("WeftLoadModel",),
    "native": ("WeftFromComfyModel",),
    "animatediff": ("WeftLoadAnimateDiff",),
    "prompt": ("WeftLoadPrompt",),
    "frames": ("WeftEncodePrompt", "WeftEncodeFrames", "WeftDecodeFrames"),
    "prepare": ("WeftPrepareClip", "WeftRestoreClip"),
    "inversion": ("WeftDDIMInversion",),
    "trajectory": ("WeftSaveTrajectory", "WeftLoadTrajectory"),
    "stem": ("WeftSTEMInversion", "WeftSTEMAttention"),
    "str_match": ("WeftSTRLatentOptimizer", "WeftPreviewSTRScore"),
    "correspondence": ("WeftCorrespondence", "WeftPreviewCorrespondence", "WeftCorrespondenceAttention"),
    "attention": ("WeftSpatioTemporalAttention", "WeftFeatureInjection"),
    "token_flow": ("WeftTokenFlow",),
    "fate_zero": ("WeftFateZero",),
    "words": ("WeftPreviewWords",),
    "latent_blend": ("WeftLatentBlend",),
    "region": ("WeftRegion",),
    "noise": ("WeftAddNoise",),
    "clip": ("WeftLoadCLIP",),
    "adaptation": ("WeftEditCandidates", "WeftTestTimeAdaptation", "WeftLoadAdapter"),
    "gather_swap": ("WeftGatherSwapAttention",),
    "chunks": ("WeftChunkPlan", "WeftChunkSelect", "WeftChunkStamp", "WeftChunkMerge", "WeftSavePart", "WeftLoadParts"),
    "sampling": ("WeftEditSampler",),
    "coupled_flow": ("WeftCoupledEdit",),
    "masks": ("WeftLoadSAM", "WeftSAMMask", "WeftTextToBoxes", "WeftTrackMask"),
    "compare": ("WeftCompareVideos",),
    "evaluate": ("WeftEvaluateEdit",),
}


class WeftExtension(ComfyExtension):
    async def get_node_list(self) -> list[type]:
        from .guard import guarded
        from .sample import put_sample  # it asks ComfyUI where its folders are

        put_sample()  # here, because not every ComfyUI calls `on_load`
        nodes = []
        for module, names in NODES.items():
            try:
                imported = import_module(f".{module}", __name__)
                nodes += [guarded(getattr(imported, name)) for name in names]
            except Exception:  # whatever it is, it must not take the other nodes with it
                log.exception("Weft: the nodes %s are missing, because '%s' could not be imported", names, module)
        return nodes
