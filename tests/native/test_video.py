"""Video transformers of core's: inversion there and back, every method that can act, what cannot is refused."""

import inspect

import pytest
import torch

from weft.backbones.comfy.families import FAMILIES as TABLE
from weft.backbones.comfy.loading import from_comfy
from weft.backbones.comfy.text import prompt_of
from weft.engine.beside import parts_of
from weft.engine.edit import edit
from weft.engine.inversion import add_noise, invert
from weft.engine.monitor import Recording
from weft.engine.plan import PLAIN, EditPlan, Region
from weft.methods.coupled_flow import CoupledFlow
from weft.methods.fate_zero import FateZero
from weft.methods.gather_swap import GatherSwap
from weft.methods.injection import FeatureInjection
from weft.methods.latent_blend import LatentBlend
from weft.methods.stem import STEMAttention
from weft.methods.str_match import STRLatentOptimizer
from weft.methods.str_view import score_heat
from weft.methods.token_flow import TokenFlow
from weft.tests.native.tiny import VARIANTS, VIDEO, make

STEPS = 4
SMOOTH = 0.3  # weights so much smaller make a field whose implicit steps converge
THERE_AND_BACK = 1e-4


@pytest.fixture(params=[name for name in VIDEO if name not in VARIANTS])
def made(request):
    return make(request.param)


class Clip:
    """A backbone of a family with a clip and prompts."""

    def __init__(self, made, sigmas=None):
        self.backbone = from_comfy(made.patcher, made.vae, sigmas=sigmas)
        self.made, self.latents = made, self.backbone.codec.unscale(made.latents(1) * 0.5)
        self.source, self.target = (prompt_of(made.conditioning(seed)) for seed in (1, 2))

    def inverted(self, steps=STEPS, **options):
        return invert(self.backbone, self.made.wire(self.latents), self.source, steps=steps, **options)

    def noised(self):
        return add_noise(self.backbone, self.made.wire(self.latents), self.source, steps=STEPS)

    def edited(self, plan=PLAIN, source=None, target=None, **options):
        """The picture of the edit; its audio is the source's."""
        options = {"guidance": 3.0, **options}
        made = edit(self.backbone, source or self.inverted(), target or self.target, plan=plan, **options)
        picture, audio = parts_of(self.backbone, made)
        assert self.made.audio is None or torch.equal(audio, self.made.audio)
        return picture


def test_the_schedule_is_cores(made):
    schedule = Clip(made).backbone.denoiser.schedule(STEPS)
    sampling = made.patcher.get_model_object("model_sampling")
    highest = float(sampling.sigma_max)
    if made.family.kind == "CogVideoX_T2V":  # its sigmas are noise over signal
        assert schedule.prediction == "v_prediction"
        highest /= (1 + highest**2) ** 0.5
    else:
        assert schedule.prediction == "flow"
        assert schedule.noise[0] == 0
    assert schedule.noise[-1] == pytest.approx(highest)


def test_there_and_back(made):
    with torch.inference_mode():
        for weight in made.network.parameters():
            weight.mul_(SMOOTH)
    clip = Clip(made)
    source = clip.inverted(12, evaluations=6)
    back = clip.edited(source=source, target=clip.source, guidance=1.0)
    error = (back - clip.latents).abs().max() / clip.latents.abs().max()
    assert error <= THERE_AND_BACK
    assert (source.at(12) - source.at(0)).abs().max() > 0.1


def test_a_shift_node_counts(made):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    (shifted,) = ModelSamplingSD3().patch(made.patcher, shift=1.0)
    plain, moved = (from_comfy(p, made.vae).denoiser.schedule(STEPS) for p in (made.patcher, shifted))
    assert plain.noise != moved.noise


def test_sigmas_that_a_user_brings(made):
    sigmas = torch.tensor([0.9, 0.5, 0.2, 0.0])
    clip = Clip(made, sigmas)
    source = clip.inverted(3)
    flow = source.schedule.prediction == "flow"
    assert source.schedule.noise == pytest.approx([n if flow else n / (1 + n**2) ** 0.5 for n in (0, 0.2, 0.5, 0.9)])
    assert torch.isfinite(clip.edited(source=source)).all()
    with pytest.raises(ValueError, match="have 3 steps, and 4 are asked for"):
        clip.inverted(4)
    with pytest.raises(ValueError, match="fall from noise to 0"):
        Clip(made, sigmas.flip(0))


def whole_mask(made):
    backbone = from_comfy(made.patcher, made.vae)
    frames, _, h, w = made.family.size
    layout = backbone.denoiser.layout
    mask = torch.zeros(layout.pixel_frames(frames), h * layout.pixels, w * layout.pixels)
    mask[:, :, : w * layout.pixels // 2] = 1
    return mask


def test_a_blend_keeps_the_source_outside_its_mask(made):
    clip = Clip(made)
    plan = EditPlan((LatentBlend(whole_mask(made), schedule="hard", dilate=0, feather=0),))
    got = clip.edited(plan)
    width = -(-made.family.size[3] // 2)
    kept, moved = ((got - clip.latents)[..., at] for at in (slice(width, None), slice(0, width)))
    torch.testing.assert_close(kept, torch.zeros_like(kept), atol=1e-4, rtol=0)
    assert moved.abs().max() > 1e-2


@pytest.mark.parametrize(("joint", "levels"), [("factorised", "all"), ("direct", "all_but_finest")])
def test_str_match_pulls_towards_the_source(made, joint, levels):
    clip, log = Clip(made), Recording()
    source = clip.inverted()
    control = STRLatentOptimizer(strength=0.1, levels=levels, joint=joint, step_mode="relative")
    got = clip.edited(EditPlan((control,)), source, monitor=log)
    assert (got - clip.edited(source=source)).abs().max() > 1e-4
    assert len(log.records) == STEPS
    assert all(record["gradient"] > 0 for record in log.records)
    assert torch.equal(
        clip.edited(EditPlan((STRLatentOptimizer(strength=0.0),)), source=source), clip.edited(source=source)
    )


def test_the_coupled_edit(made):
    clip = Clip(made)
    noised = clip.noised()
    got = clip.edited(source=noised, solver=CoupledFlow(), guidance=2.0)
    assert (got - clip.latents).abs().max() > 1e-3
    same = clip.edited(source=noised, target=clip.source, solver=CoupledFlow(source_guidance=1.0), guidance=1.0)
    torch.testing.assert_close(same, clip.latents, atol=1e-4, rtol=1e-4)


def test_injection_brings_the_sources_map(made):
    clip = Clip(made)
    source = clip.inverted()
    got = clip.edited(EditPlan((FeatureInjection(0, STEPS),)), source=source)
    assert (got - clip.edited(source=source)).abs().max() > 1e-4


def test_regions(made):
    clip = Clip(made)
    plan = EditPlan(regions=(Region(clip.target, mask=whole_mask(made)),))
    got = clip.edited(plan)
    width = -(-made.family.size[3] // 2)
    kept = (got - clip.latents)[..., width:]
    torch.testing.assert_close(kept, torch.zeros_like(kept), atol=1e-4, rtol=0)


def test_the_score_can_be_looked_at(made):
    clip = Clip(made)
    heat = score_heat(clip.backbone, clip.inverted(), (0.5, 0.5), 2, levels="all")
    frames, _, h, w = made.family.size
    assert heat.shape == (frames, h, w)
    assert heat.amax() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("control", "why"),
    [
        (TokenFlow(2), "looks at all frames together"),
        (GatherSwap(2), "looks at all frames together"),
        (FateZero(), "does not have both"),
        (STEMAttention(em_frames=2), "looks at all frames together"),
    ],
    ids=["TokenFlow", "gather-swap", "FateZero", "grouped STEM"],
)
def test_what_wants_single_frames_is_refused(made, control, why):
    with pytest.raises(ValueError, match=why):
        Clip(made).edited(EditPlan((control,)))


def test_chunks_of_frames_are_refused(made):
    with pytest.raises(ValueError, match="cannot run in chunks of 1"):
        Clip(made).inverted(chunk_frames=1)


def test_a_class_that_is_not_known_still_inverts_and_edits(made, monkeypatch):
    if from_comfy(made.patcher, made.vae).denoiser.family.one_row:
        return  # that it takes one row is what has to be known
    known = Clip(made).edited()
    monkeypatch.delitem(TABLE, type(made.network).__name__)
    clip = Clip(made)
    assert clip.backbone.denoiser.sites == ()
    assert torch.equal(clip.edited(), known)
    with pytest.raises(ValueError, match="temporal attention beside it"):
        clip.edited(EditPlan((STRLatentOptimizer(),)))
    with pytest.raises(ValueError, match="no decoder"):
        clip.edited(EditPlan((FeatureInjection(1, 1),)))


def test_another_network_is_another_model(made):
    source, clip = Clip(made).inverted(), Clip(made)
    clip.backbone.require(source)
    with torch.inference_mode():
        next(iter(made.network.parameters())).add_(1)
    with pytest.raises(ValueError, match="inverted with another model"):
        Clip(made).backbone.require(source)


@pytest.mark.parametrize("name", ["wan i2v", "wan 2.2 i2v"])
def test_a_picture_on_a_conditioning_goes_along(name):
    """It is laid beside the latents at every evaluation, and core's way of scaling it in place leaves it as it was."""
    clip = Clip(make(name))
    before = [tensor.clone() for tensor in _pictures(clip)]
    source = clip.noised()
    got = clip.edited(source=source, solver=CoupledFlow(), guidance=2.0)
    assert all(torch.equal(old, new) for old, new in zip(before, _pictures(clip)))
    ((text, extra),) = clip.target.cond["conditioning"]
    moved = prompt_of([[text, {**extra, "concat_latent_image": -extra["concat_latent_image"]}]])
    other = clip.edited(source=source, target=moved, solver=CoupledFlow(), guidance=2.0)
    assert (got - other).abs().max() > 1e-3


def _pictures(clip):
    return [clip.target.cond["conditioning"][0][1][key] for key in ("concat_latent_image", "concat_mask")]


def test_a_trained_text_is_taken_whole(made):
    """What else a conditioning carries goes along: its strength, say, does nothing to one that is alone."""
    clip = Clip(made)
    stronger = prompt_of([[tensor, {**extra, "strength": 0.5}] for tensor, extra in clip.target.cond["conditioning"]])
    source = clip.inverted()
    torch.testing.assert_close(
        clip.edited(source=source, target=stronger), clip.edited(source=source), rtol=1e-4, atol=1e-5
    )


def test_windows_of_context_are_refused_where_methods_want_the_whole_clip(made):
    """A plain edit goes through them."""
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    options = {"context_length": 2, "context_overlap": 0, "context_schedule": "standard_static", "context_stride": 1}
    options |= {"closed_loop": False, "fuse_method": "pyramid", "dim": 2, "freenoise": False}
    known = inspect.signature(ContextWindowsManualNode.execute).parameters  # they grew
    options = {name: value for name, value in options.items() if name in known}
    (patcher,) = ContextWindowsManualNode.execute(made.patcher, **options).result
    made = type(made)(made.family, patcher)
    if made.family.size[0] <= 2 or made.family.kind == "MiniMaxH3":
        return  # nothing to cut up; core has no windows for it
    assert torch.isfinite(Clip(made).edited()).all()
    with pytest.raises(ValueError, match="context windows cut it up"):
        Clip(made).edited(EditPlan((FeatureInjection(0, STEPS),)))


@pytest.mark.parametrize("name", [name for name in ("h3", "wan", "ltx audio") if name in VIDEO])
def test_audio_that_is_missing_or_of_no_use(name):
    clip = Clip(make(name))
    if name == "wan":
        with pytest.raises(ValueError, match="edits video alone, and these latents hold audio too"):
            clip.backbone.denoiser.session(
                [clip.source], clip.made.latents(1), clip.backbone.denoiser.schedule(STEPS), lambda p: p, beside=TONE
            )
    elif name == "h3":
        with pytest.raises(ValueError, match="these latents have none"):
            invert(clip.backbone, clip.latents, clip.source, steps=STEPS)
    else:  # its audio may stay away, and counts where it is there
        alone = invert(clip.backbone, clip.latents, clip.source, steps=STEPS)
        assert (alone.at(STEPS) - clip.inverted().at(STEPS)).abs().max() > 1e-4


TONE = torch.zeros(1, 8, 7, 16)
