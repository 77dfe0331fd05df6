from dataclasses import dataclass, field, replace

import pytest
import torch

from weft.backbones.diffusers import parts
from weft.backbones.memory import PlainMemory
from weft.backbones.diffusers.unet2d import UNet2D
from weft.engine.call import Evaluation, Run
from weft.engine.edit import edit
from weft.engine.inversion import invert
from weft.engine.plan import PLAIN, Control, EditPlan
from weft.engine.words import NEGATIVE, POSITIVE, SOURCE, Layout
from weft.methods.injection import FeatureInjection
from weft.tests.engine.analytic import Gaussian
from weft.tests.numerics import assert_close
from weft.tests.tiny import FINEST_TOO, make_latents, make_unet

ROWS = (SOURCE, NEGATIVE, POSITIVE)


def evaluation(backbone, rows=ROWS, step=0):
    prompts = tuple(backbone.text.embed(text) for text in ("a red square", "", "a blue circle")[: len(rows)])
    latents = torch.stack([make_latents(3, (5, 9), seed) for seed in range(len(rows))])
    return Evaluation(latents, 501, prompts, rows, run=Run(step))


@torch.no_grad()
def predict(backbone, e, *controls):
    return backbone.denoiser.predict(e, EditPlan(controls))


@dataclass(frozen=True)
class Keep(Control):
    """Everything an attention layer or a residual block is given or gives."""

    kept: dict = field(default_factory=dict)

    def attention(self, call, attend):
        self.kept[call.site] = call.q, call.k
        return attend(call)

    def feature(self, features):
        self.kept[features.block] = features.x
        return features.x


@dataclass(frozen=True)
class Put(Control):
    """The other way to inject: what was kept, at places named by hand."""

    kept: dict
    layers: tuple[str, ...]
    blocks: tuple[str, ...]

    def attention(self, call, attend):
        q, k = self.kept[call.site] if call.site.layer in self.layers else (call.q, call.k)
        return attend(replace(call, q=q, k=k))

    def feature(self, features):
        return self.kept[features.block] if features.block.name in self.blocks else features.x


SELF = "transformer_blocks.0.attn1"
SECOND = ("up_blocks.1.resnets.1.conv2",)  # of the tiny decoder's three stages, the last two attend, twice each
THREE = ("up_blocks.1.resnets.0.conv2", *SECOND, "up_blocks.2.resnets.0.conv2")
LAYERS = ("up_blocks.1.attentions.1", "up_blocks.2.attentions.0", "up_blocks.2.attentions.1")


@pytest.mark.parametrize(
    ("places", "blocks", "layers"), [("plug_and_play", SECOND, LAYERS), ("flatten", THREE, LAYERS[:2])]
)
@pytest.mark.parametrize("what", ["features", "attention", "both"])
def test_the_edit_gets_what_the_source_has_there(tiny_image64, places, blocks, layers, what):
    """Against storing it, as the papers do, and putting it in by name."""
    e, kept = evaluation(tiny_image64), Keep()
    predict(tiny_image64, e.only(SOURCE), kept)
    blocks = blocks if what != "attention" else ()
    layers = tuple(f"{layer}.{SELF}" for layer in layers) if what != "features" else ()
    control = FeatureInjection(bool(blocks), bool(layers), places)
    got = predict(tiny_image64, e, control)
    for row, output in zip(ROWS[1:], got[1:]):
        plain = predict(tiny_image64, e.only(row))
        want = predict(tiny_image64, e.only(row), Put(kept.kept, layers, blocks))
        assert_close(output, want[0])
        assert (want - plain).abs().max() > 1e-3
    assert_close(got[0], predict(tiny_image64, e.only(SOURCE))[0])


@pytest.mark.parametrize(("places", "residuals"), [("plug_and_play", [4]), ("flatten", [3, 4, 6])])
def test_the_places_in_stable_diffusion_are_those_of_the_papers(monkeypatch, places, residuals):
    from diffusers import UNet2DConditionModel

    monkeypatch.setattr(parts, "fingerprint", lambda *modules: "none")
    with torch.device("meta"):
        network = UNet2DConditionModel(cross_attention_dim=768)
    sd = UNet2D("sd", network, Layout(8), {}, PlainMemory("cpu"), scaling_factor=1.0)
    control = FeatureInjection(places=places)
    blocks = [block for block in sd.blocks if block.kind == "residual"]
    assert [block for block in sd.blocks if control.injects(block)] == [blocks[i] for i in residuals]
    finest = [(3, 0), (3, 1), (3, 2)] if places == "plug_and_play" else [(3, 0)]
    want = [f"up_blocks.{i}.attentions.{j}.{SELF}" for i, j in [(1, 1), (1, 2), (2, 0), (2, 1), (2, 2), *finest]]
    assert [site.layer for site in sd.sites if control.injects(site)] == want


def test_the_source_injected_into_itself_is_the_source(tiny_image64):
    e = evaluation(tiny_image64, (SOURCE, POSITIVE))
    e = replace(e, latents=e.latents[[0, 0]], prompts=(e.prompts[0],) * 2)
    assert_close(predict(tiny_image64, e, FeatureInjection()), predict(tiny_image64, e))


@pytest.mark.parametrize(("step", "features", "attention"), [(0, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 2)])
def test_it_ends_after_its_steps(tiny_image64, step, features, attention):
    e = evaluation(tiny_image64, step=step)
    got = predict(tiny_image64, e, FeatureInjection(features, attention))
    want = predict(tiny_image64, e, FeatureInjection(99 * (features > step), 99 * (attention > step)))
    assert torch.equal(got, want)
    if step == 2:
        assert_close(got, predict(tiny_image64, e))


@pytest.fixture
def trajectory(tiny_image):
    return invert(tiny_image, make_latents(), tiny_image.text.embed("a red square"), steps=3)


@pytest.fixture
def run(tiny_image, trajectory):
    target = tiny_image.text.embed("a blue circle")
    return lambda plan=PLAIN, **options: edit(tiny_image, trajectory, target, plan=plan, guidance=2, **options)


def test_no_steps_is_the_plain_edit_bit_for_bit(run):
    assert torch.equal(run(PLAIN.then(FeatureInjection(feature_steps=0, attention_steps=0))), run())


@pytest.mark.parametrize("numbers", [{"feature_steps": 0}, {"attention_steps": 0}, {}, {"places": "flatten"}])
def test_an_edit_with_it_is_another_and_nearer_to_the_source(run, trajectory, tiny_image, numbers):
    plain, got = run(), run(PLAIN.then(FeatureInjection(**numbers)))
    source = tiny_image.codec.unscale(trajectory.latents[0])
    assert not torch.equal(got, plain)
    if not numbers:
        assert (got - source).norm() < (plain - source).norm()


def test_frames_do_not_see_each_other(tiny_image64):
    e, control = evaluation(tiny_image64), FeatureInjection()
    got = torch.cat([predict(tiny_image64, e.select([i]), control) for i in range(3)], 1)
    assert_close(got, predict(tiny_image64, e, control))


def test_an_inversion_is_as_without_it(tiny_image64):
    prompt, latents = tiny_image64.text.embed("a red square"), make_latents()
    plain, got = (
        invert(tiny_image64, latents, prompt, steps=3, plan=p) for p in (PLAIN, PLAIN.then(FeatureInjection()))
    )
    assert_close(got.latents, plain.latents)


def test_it_acts_in_video_models_too(tiny64):
    e = evaluation(tiny64)
    got, plain = predict(tiny64, e, FeatureInjection()), predict(tiny64, e)
    assert_close(got[0], plain[0])
    assert (got[1:] - plain[1:]).abs().max() > 1e-3


@pytest.mark.parametrize("numbers", [{"feature_steps": 1, "attention_steps": 0}, {"attention_steps": 1}])
def test_without_a_source_it_says_so(tiny_image, numbers):
    e = evaluation(tiny_image)
    with pytest.raises(ValueError, match=r"no source beside the edit at up_blocks\..*: this evaluation has positive"):
        predict(tiny_image, e.only(POSITIVE), FeatureInjection(**numbers))


@pytest.mark.parametrize(
    ("numbers", "match"),
    [
        ({"feature_steps": -1}, "feature_steps must be 0 or more steps, got -1"),
        ({"attention_steps": -2}, "attention_steps must be 0 or more steps, got -2"),
        ({"places": "everywhere"}, "no places 'everywhere': want one of plug_and_play, flatten"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(numbers, match):
    with pytest.raises(ValueError, match=match):
        PLAIN.then(FeatureInjection(**numbers))


def test_a_model_without_a_decoder_is_refused():
    backbone = Gaussian()
    trajectory = invert(backbone, backbone.sample(), backbone.text.embed("a dog"), steps=2)
    with pytest.raises(ValueError, match="'gaussian' has no decoder with two attention layers"):
        edit(backbone, trajectory, trajectory.prompt, plan=PLAIN.then(FeatureInjection()))


def test_the_tiny_decoder_is_as_these_tests_say():
    stages = [hasattr(stage, "attentions") for stage in make_unet(FINEST_TOO, "image").up_blocks]
    assert stages == [False, True, True]
