"""The shipped workflows as data, by name: what each node is, what its widgets say, and in which column it stands."""

from __future__ import annotations

from .coupled import NOTES as COUPLED
from .coupled import coupled
from .cove import cove
from .mask import mask
from .native import NOTES as NATIVE
from .native import native
from .papers import NAMES as PAPERS
from .papers import paper
from .stem import stem
from .str_match import str_match
from .via import via

GRAPHS = {
    "str_match": str_match(masked=False),
    "str_match_masked": str_match(masked=True),
    **{name: coupled(name) for name in COUPLED},
    "mask_by_click": mask(by_text=False),
    "mask_by_text": mask(by_text=True),
    "via_local": via("local"),
    "via_global": via("global"),
    "via_long": via("long"),
    "via_long_distributed": via("distributed"),
    "cove": cove(),
    "stem_tokenflow": stem("token_flow"),
    "stem_fatezero": stem("fate_zero"),
    **{name: paper(name) for name in PAPERS},
    **{name: native(name) for name in NATIVE},
}
