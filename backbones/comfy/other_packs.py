"""What nodes of core and other packs put on a MODEL that does not go with evaluations of our own.

Their patches and wrappers stay in force, but for two kinds. Caches that skip evaluations (EasyCache, LazyCache) take
the source's for the edit's. And where gradients or controls pass the network, it runs as it is written, here: neither
compiled, which would freeze what a control does, nor on other GPUs, whose threads know no gradients and mix up turns.
"""

from __future__ import annotations

import logging
from typing import Any

from comfy.patcher_extension import WrappersMP

log = logging.getLogger(__name__)
CACHES = ("easycache", "lazycache")  # as core names its own
COMPILED = "torch.compile"
CLONES = "multigpu_clones"  # of the network, one a GPU, each in a thread


def plain_clone(patcher):
    """A clone of the MODEL for one run, without caches, and a line in the log if there was one."""
    clone = patcher.clone()
    kinds = [getattr(WrappersMP, name) for name in dir(WrappersMP) if name.isupper()]
    for key in CACHES:
        held = [kind for kind in kinds if clone.wrappers.get(kind, {}).get(key)]
        for kind in held:
            clone.remove_wrappers_with_key(kind, key)
        if held:
            log.warning("the MODEL has a cache on it (%s), which skips evaluations that differ: it is off here", key)
    return clone


def as_written(options: dict[str, Any]) -> dict[str, Any]:
    """Core's model options for evaluations with controls or gradients: on this device, and not compiled."""
    transformer = dict(options["transformer_options"])
    wrappers = {kind: dict(named) for kind, named in transformer.get("wrappers", {}).items()}
    if wrappers.get(WrappersMP.APPLY_MODEL, {}).pop(COMPILED, None):
        log.debug("the network is not compiled where methods act in it")
    transformer["wrappers"] = wrappers
    return {name: value for name, value in options.items() if name != CLONES} | {"transformer_options": transformer}
