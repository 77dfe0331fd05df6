"""Every ordered pair of methods on a tiny model: it runs, or it is refused before the network is evaluated once."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from weft.engine.edit import edit
from weft.engine.inversion import invert
from weft.engine.plan import PLAIN, name_of
from weft.methods.correspondence import correspondence
from weft.methods.correspondence_attention import CorrespondenceAttention
from weft.methods.fate_zero import FateZero
from weft.methods.gather_swap import GatherSwap
from weft.methods.injection import FeatureInjection
from weft.methods.latent_blend import LatentBlend
from weft.methods.spatio_temporal import SpatioTemporalAttention
from weft.methods.stem import STEMAttention
from weft.methods.str_match import STRLatentOptimizer
from weft.methods.token_flow import TokenFlow
from weft.tests.tiny import FRAMES, SIZE, make_latents

SOURCE, TARGET = "a red square", "a blue square"
PIXELS = 2  # to a latent cell of the tiny models
NAMES = {
    "cove": lambda found: CorrespondenceAttention(found),
    "cove projected": lambda found: CorrespondenceAttention(found, tokens="projected", levels="all", strength=0.5),
    "spatio-temporal": lambda found: SpatioTemporalAttention(),
    "neighbours": lambda found: SpatioTemporalAttention(frames=1),
    "injection": lambda found: FeatureInjection(),
    "token flow": lambda found: TokenFlow(batch=2),
    "fate zero": lambda found: FateZero(words=("red",)),
    "fate zero, own keys": lambda found: FateZero(words=("red",), key_frames="own"),
    "gather-swap": lambda found: GatherSwap(group=2),
    "stem": lambda found: STEMAttention(bases=8),
    "stem, grouped": lambda found: STEMAttention(bases=8, em_frames=2),
    "str": lambda found: STRLatentOptimizer(strength=0.5),
    "blend": lambda found: LatentBlend(half_mask()),
}
# One of a method's settings stands for it beside another of its own.
PAIRS = [(a, b) for a, b in permutations(NAMES, 2) if a.split(",")[0].split()[0] != b.split(",")[0].split()[0]]
TRIPLES = [("blend", "str", "injection"), ("cove", "token flow", "blend"), ("fate zero", "blend", "stem")]
# What cannot act together, by the words of the refusal: nothing else may be refused on the model named.
REFUSED = {
    frozenset({"token flow", "gather-swap"}): "evaluate some frames on their own",
    frozenset({"token flow", "stem, grouped"}): "evaluate some frames on their own",
    frozenset({"gather-swap", "stem, grouped"}): "evaluate some frames on their own",
    frozenset({"gather-swap", "stem"}): "keys of a few",
    frozenset({"gather-swap", "spatio-temporal"}): "keys of a few",
    frozenset({"gather-swap", "neighbours"}): "keys of a few",
    frozenset({"gather-swap", "fate zero"}): "keys of a few",
}
NOT_ON_AN_IMAGE_MODEL = {"str"}
NOT_ON_A_VIDEO_MODEL = {"token flow", "gather-swap", "stem, grouped"}


def half_mask() -> torch.Tensor:
    mask = torch.zeros(1, SIZE[0] * PIXELS, SIZE[1] * PIXELS)
    mask[:, :, : SIZE[1]] = 1
    return mask


@pytest.fixture(scope="module")
def stage(request, tmp_path_factory):
    """For a kind of model: (backbone, the source's trajectory, a correspondence)."""
    from weft.backbones.diffusers.loading import load_backbone
    from weft.backbones.memory import PlainMemory
    from weft.tests.tiny import make_folder

    folder = make_folder(tmp_path_factory.mktemp("pairs") / request.param, kind=request.param)
    backbone = load_backbone(folder, dtype="float32", memory=PlainMemory("cpu"))
    prompt = backbone.text.embed(SOURCE)
    trajectory = invert(backbone, make_latents(), prompt, steps=2)
    return backbone, trajectory, correspondence(backbone, make_latents(), top_k=2, window=3)


def run(stage, *names):
    """The edit under some methods, and how often the network was evaluated. Raises what `edit` raises."""
    backbone, trajectory, found = stage
    plan = PLAIN
    for name in names:
        plan = plan.then(NAMES[name](found))
    calls = []
    hook = backbone.denoiser.network.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        return edit(backbone, trajectory, backbone.text.embed(TARGET), plan=plan, guidance=2.0), calls
    except ValueError:
        assert not calls, "refused after the network had been evaluated"
        raise
    finally:
        hook.remove()


def expected_refusal(kind: str, names) -> str | None:
    unfit = NOT_ON_AN_IMAGE_MODEL if kind == "image" else NOT_ON_A_VIDEO_MODEL
    if unfit & set(names):
        return "STR-Match wants a text-to-video model|looks at all frames together"
    return next((why for pair, why in REFUSED.items() if pair <= set(names)), None)


@pytest.mark.parametrize("names", [*PAIRS, *TRIPLES], ids=" + ".join)
@pytest.mark.parametrize("stage", ["image", "video"], indirect=True)
def test_methods_act_together_or_are_refused_at_once(stage, names, request):
    why = expected_refusal(request.node.callspec.params["stage"], names)
    if why is not None:
        with pytest.raises(ValueError, match=why):
            run(stage, *names)
        return
    got, calls = run(stage, *names)
    assert got.shape == (FRAMES, 4, *SIZE)
    assert got.isfinite().all()
    assert calls


@pytest.mark.parametrize("names", [n for n in REFUSED if len(n) == 2], ids=lambda n: " + ".join(sorted(n)))
@pytest.mark.parametrize("stage", ["image"], indirect=True)
def test_a_refusal_names_both_methods(stage, names):
    found = stage[2]
    with pytest.raises(ValueError, match="cannot act together") as refusal:
        run(stage, *names)
    for name in names:
        assert name_of(NAMES[name](found)) in str(refusal.value)


@pytest.mark.parametrize("stage", ["image"], indirect=True)
def test_wire_order_does_not_matter_where_slots_differ(stage):
    for pair in (("injection", "cove"), ("fate zero, own keys", "stem"), ("spatio-temporal", "cove"), ("stem", "cove")):
        one, other = run(stage, *pair)[0], run(stage, *reversed(pair))[0]
        assert torch.equal(one, other), pair
