"""What else has Wan's blocks: whole edits, reference frames beside the clip's own, and what is refused."""

import pytest
import torch

from weft.backbones.comfy.loading import from_comfy
from weft.backbones.comfy.text import prompt_of
from weft.engine.call import Evaluation
from weft.engine.monitor import Recording
from weft.engine.plan import PLAIN, EditPlan
from weft.engine.probe import read_calls
from weft.engine.words import SOURCE
from weft.methods.coupled_flow import CoupledFlow
from weft.methods.injection import FeatureInjection
from weft.methods.str_match import STRLatentOptimizer
from weft.tests.native.test_video import STEPS, Clip
from weft.tests.native.tiny import make

STR = EditPlan((STRLatentOptimizer(strength=0.1, levels="all", step_mode="relative"),))
LAYER = "blocks.0.self"


@pytest.mark.parametrize("name", ["5b", "animate", "humo"])
def test_a_kind_is_edited_by_every_method_that_acts_on_wan(name):
    clip, log = Clip(make(name)), Recording()
    source = clip.inverted()
    plain = clip.edited(source=source)
    for plan in (EditPlan((FeatureInjection(0, STEPS),)), STR):
        assert (clip.edited(plan, source=source, monitor=log) - plain).abs().max() > 1e-4
    assert all(record["gradient"] > 0 for record in log.records if "gradient" in record)
    got = clip.edited(source=clip.noised(), solver=CoupledFlow(), guidance=2.0)
    assert (got - clip.latents).abs().max() > 1e-3


def test_sound_to_video_is_edited_plainly_and_the_rest_is_refused():
    """It adds the sound in place between its blocks, which no gradient can pass."""
    clip = Clip(make("s2v"))
    source = clip.inverted()
    assert torch.isfinite(clip.edited(source=source)).all()
    assert (clip.edited(source=source, solver=CoupledFlow()) - clip.latents).abs().max() > 1e-3
    with pytest.raises(ValueError, match="temporal attention beside it"):
        clip.edited(STR, source=source)


def calls(made, **extra):
    """Queries and keys of the first layer, under a conditioning with some more on it."""
    backbone = from_comfy(made.patcher, made.vae)
    ((text, told),) = made.conditioning(0)
    prompt, schedule = prompt_of([[text, {**told, **extra}]]), backbone.denoiser.schedule(STEPS)
    one = Evaluation(made.latents(1)[None], schedule.label(3), (prompt,), (SOURCE,))
    read = backbone.denoiser.session(
        [prompt], made.latents(1), schedule, lambda predict: read_calls(predict, one, PLAIN, SOURCE, [LAYER])
    )
    return read[LAYER]


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("wan", {"time_dim_concat": torch.randn(1, 16, 2, 5, 6)}),
        ("with a frame before", {"reference_latents": [torch.randn(1, 16, 1, 4, 6)]}),
    ],
    ids=["after", "before"],
)
def test_reference_frames_are_none_of_the_clips(name, extra):
    """What the first layer makes of the clip's tokens depends on these alone, but for the places that they have."""
    made = make(name)
    alone, beside = calls(made), calls(made, **extra)
    tokens = alone.q.shape[3]
    assert beside.k.shape[3] > tokens
    assert beside.q.shape == alone.q.shape
    if name == "wan":
        torch.testing.assert_close(beside.q, alone.q)
    torch.testing.assert_close(beside.q.norm(dim=-1), alone.q.norm(dim=-1))  # one frame before moves their places
    torch.testing.assert_close(beside.k[..., -tokens:, :].norm(dim=-1), alone.k.norm(dim=-1))


@pytest.mark.parametrize("name", ["wan i2v", "animate"])
def test_a_picture_of_another_length_is_refused(name, monkeypatch):
    clip = Clip(make(name))
    ((text, extra),) = clip.source.cond["conditioning"]
    longer = {key: torch.cat([extra[key]] * 2, 2) for key in ("concat_latent_image", "concat_mask")}
    clip.source = prompt_of([[text, {**extra, **longer}]])
    monkeypatch.setattr(clip.made.network, "forward", lambda *args, **kwargs: pytest.fail("it was evaluated"))
    with pytest.raises(ValueError, match="a picture of 6 latent frames beside the clip, which has 3"):
        clip.inverted()
