"""The same small weights through diffusers and through core's own MODEL: alike in every evaluation and whole edit."""

from dataclasses import replace

import comfy.sd
import pytest
import torch

from weft.backbones.comfy.loading import from_comfy
from weft.backbones.comfy.text import prompt_of
from weft.engine.call import Evaluation
from weft.engine.edit import edit
from weft.engine.inversion import add_noise, invert
from weft.engine.plan import PLAIN, EditPlan
from weft.engine.seeds import generator_for
from weft.engine.words import NEGATIVE, POSITIVE, SOURCE, UNCONDITIONAL
from weft.methods import stem
from weft.methods.correspondence import correspondence
from weft.methods.correspondence_attention import CorrespondenceAttention
from weft.methods.coupled_flow import CoupledFlow
from weft.methods.fate_zero import FateZero
from weft.methods.gather_swap import GatherSwap
from weft.methods.injection import FeatureInjection
from weft.methods.latent_blend import LatentBlend
from weft.methods.spatio_temporal import SpatioTemporalAttention
from weft.methods.stem import STEMAttention
from weft.methods.token_flow import TokenFlow, with_injection
from weft.tests.native.tiny import StandInVAE
from weft.tests.native.unets import twins, xl_twins
from weft.tests.numerics import assert_close, assert_same_edit

FRAMES, SIZE, STEPS = 4, (8, 12), 4


@pytest.fixture(scope="module")
def image(sd_folder):
    return twins(sd_folder)


@pytest.fixture(scope="module")
def instruct(instruct_folder):
    return twins(instruct_folder)


@pytest.fixture(scope="module")
def two(two_folder):
    return twins(two_folder)


def clip(seed=1):
    """Wire latents whose scaled values are about 1."""
    return torch.randn(FRAMES, 4, *SIZE, generator=torch.Generator().manual_seed(seed)) / 0.18215 / 2


def prompt_pair(pair, text):
    """The same text for both: core's conditioning of what the toy world's encoder reads."""
    ours, _ = pair
    prompt = ours.text.embed(text)
    return prompt, prompt_of([[prompt.cond["embedding"], {}]], text, prompt.tokens)


def both(pair, act):
    """What `act(backbone, a function of texts)` gives through each."""
    results = []
    for i, backbone in enumerate(pair):
        results.append(act(backbone, lambda text, i=i: prompt_pair(pair, text)[i]))
    return results


def evaluate(backbone, rows, prompts, latents, label, plan=PLAIN, image=None):
    schedule = backbone.denoiser.schedule(STEPS)
    evaluation = Evaluation(latents, label, tuple(prompts), rows, image=image)
    return backbone.denoiser.session(prompts, latents[0], schedule, lambda predict: predict(evaluation, plan))


def test_the_schedules_are_one(image):
    ours, core = (backbone.denoiser.schedule(STEPS) for backbone in image)
    assert ours.timesteps == core.timesteps
    assert ours.prediction == core.prediction == "epsilon"
    assert_close(torch.tensor(core.noise), torch.tensor(ours.noise), torch.float32)


@pytest.mark.parametrize("label", [1.0, 501.0, 951.0])
def test_epsilon_is_the_same(image, label):
    latents = torch.randn(1, FRAMES, 4, *SIZE).expand(2, -1, -1, -1, -1)

    def act(backbone, text):
        return evaluate(backbone, (NEGATIVE, POSITIVE), [text("a dull day"), text("a red square")], latents, label)

    ours, core = both(image, act)
    assert ours.std() > 0.05
    assert_close(core, ours, torch.float32)


@pytest.mark.parametrize("label", [1.0, 951.0])
def test_v_of_stable_diffusion_2_is_the_same(two, label):
    latents = torch.randn(1, FRAMES, 4, *SIZE).expand(2, -1, -1, -1, -1)

    def act(backbone, text):
        return evaluate(backbone, (NEGATIVE, POSITIVE), [text("a dull day"), text("a red square")], latents, label)

    ours, core = both(two, act)
    assert two[1].denoiser.schedule(STEPS).prediction == "v_prediction"
    assert ours.std() > 0.05
    assert_close(core, ours, torch.float32)


@pytest.mark.parametrize("name", ["plain", "COVE"])
def test_a_whole_edit_of_stable_diffusion_2_is_the_same(two, name):
    ours, core = both(two, lambda backbone, text: of_plan(backbone, text, name))
    assert_same_edit(core, ours)


def test_epsilon_of_stable_diffusion_xl_is_that_of_diffusers():
    """With the pooled text, and the sizes that core's CLIPTextEncodeSDXL puts on a conditioning."""
    network, backbone = xl_twins()
    size = {"width": 96, "height": 64, "crop_w": 8, "crop_h": 0, "target_width": 88, "target_height": 72}
    texts = [(torch.randn(1, 5, 64), torch.randn(1, 1280)) for _ in range(2)]
    prompts = [prompt_of([[text, {"pooled_output": pooled, **size}]]) for text, pooled in texts]
    z = torch.randn(FRAMES, 4, *SIZE)
    core = evaluate(backbone, (NEGATIVE, POSITIVE), prompts, z.expand(2, -1, -1, -1, -1), 501.0)
    ids = torch.tensor([[64.0, 96, 0, 8, 72, 88]]).double().expand(FRAMES, -1)
    for got, (text, pooled) in zip(core, texts):
        added = {"text_embeds": pooled.double().expand(FRAMES, -1), "time_ids": ids}
        with torch.no_grad():
            want = network(z.double(), 501, text.double().expand(FRAMES, -1, -1), added_cond_kwargs=added).sample
        assert_close(got, want.float(), torch.float32)
    assert (core[0] - core[1]).abs().max() > 1e-3


def test_a_text_without_its_pooled_part_is_refused():
    _, backbone = xl_twins()
    with pytest.raises(ValueError, match="by Encode Prompt or CLIP Text Encode"):
        invert(backbone, clip(), prompt_of([[torch.randn(1, 5, 64), {}]]), steps=STEPS)


def test_rows_with_latents_of_their_own_keep_them(image):
    latents = torch.randn(3, FRAMES, 4, *SIZE)
    latents[2] = latents[1]
    rows = (SOURCE, NEGATIVE, POSITIVE)

    def act(backbone, text):
        return evaluate(backbone, rows, [text("a"), text("b"), text("c")], latents, 501.0)

    ours, core = both(image, act)
    assert_close(core, ours, torch.float32)


def test_epsilon_of_a_model_that_is_given_the_picture(instruct):
    latents = torch.randn(1, FRAMES, 4, *SIZE).expand(3, -1, -1, -1, -1)
    picture = torch.randn(FRAMES, 4, *SIZE)

    def act(backbone, text):
        rows, prompts = (UNCONDITIONAL, NEGATIVE, POSITIVE), [text(""), text(""), text("make it blue")]
        return evaluate(backbone, rows, prompts, latents, 501.0, image=picture)

    ours, core = both(instruct, act)
    assert (ours[0] - ours[1]).abs().max() > 1e-3  # the picture tells
    assert_close(core, ours, torch.float32)


def cove(backbone, text):
    found = correspondence(replace(backbone, text=Texts(text)), clip(), window=5, top_k=2)
    return EditPlan((FeatureInjection(2, 1), CorrespondenceAttention(found), SpatioTemporalAttention()))


class Texts:
    """A text encoder of prompts that are there."""

    def __init__(self, embed):
        self.embed, self.fingerprint = embed, ""


def half_mask():
    mask = torch.zeros(1, SIZE[0] * 8, SIZE[1] * 8)
    mask[:, :, : SIZE[1] * 4] = 1
    return mask


# At the paper's temperature of 0.01 which base a token chooses is nearly hard, and may turn on the last bit.
SOFT = {"bases": 12, "temperature": 1.0}
PLANS = {
    "plain": lambda backbone, text: PLAIN,
    "COVE": cove,
    "STEM": lambda backbone, text: EditPlan((STEMAttention(**SOFT),)),
    "STEM of tokens": lambda backbone, text: EditPlan((STEMAttention(**SOFT, space="hidden"),)),
    "STEM + TokenFlow": lambda backbone, text: with_injection(
        EditPlan((STEMAttention(**SOFT),)), TokenFlow(2), feature_steps=2, attention_steps=2
    ),
    "TokenFlow": lambda backbone, text: with_injection(PLAIN, TokenFlow(2), feature_steps=2, attention_steps=2),
    "FateZero": lambda backbone, text: EditPlan((FateZero(words=("square",)),)),
    "blend": lambda backbone, text: EditPlan((LatentBlend(half_mask()),)),
    "gather-swap": lambda backbone, text: EditPlan((GatherSwap(2),)),
}


def of_plan(backbone, text, name, **options):
    plan = PLANS[name](backbone, text)
    shaping = EditPlan(tuple(c for c in plan.controls if not c.needs().edit and not c.acts_at("after_step")))
    source = invert(backbone, clip(), text("a red square"), steps=STEPS, plan=shaping)
    return edit(backbone, source, text("a blue square"), plan=plan, guidance=3.0, **options)


@pytest.fixture
def same_draws(monkeypatch):
    """STEM draws its starts by the layer's name, which is each library's own: here by the step alone."""
    monkeypatch.setattr(stem, "generator_for", lambda seed, step, layer: generator_for(seed, step))


@pytest.mark.parametrize("name", PLANS)
def test_a_whole_edit_is_the_same(image, name, same_draws):
    ours, core = both(image, lambda backbone, text: of_plan(backbone, text, name))
    plain = both(image, lambda backbone, text: of_plan(backbone, text, "plain"))[0]
    assert name == "plain" or (ours - plain).abs().max() > 1e-2, "this method did nothing"
    assert_same_edit(core, ours)


@pytest.mark.parametrize("name", ["plain", "FateZero", "TokenFlow"])
def test_chunks_of_frames_change_nothing(image, name):
    if name == "FateZero":
        PLANS["own frames"] = lambda backbone, text: EditPlan((FateZero(words=("square",), key_frames="own"),))
        name = "own frames"
    _, core = image
    whole, parts = (
        of_plan(core, lambda text: prompt_pair(image, text)[1], name, chunk_frames=frames) for frames in (0, 3)
    )
    assert_same_edit(parts, whole)


def test_the_coupled_edit_is_the_same(image):
    def act(backbone, text):
        source = add_noise(backbone, clip(), text("a red square"), steps=STEPS)
        return edit(backbone, source, text("a blue square"), solver=CoupledFlow(), guidance=3.0)

    ours, core = both(image, act)
    assert_same_edit(core, ours)


@pytest.mark.parametrize("name", ["plain", "gather-swap"])
def test_an_instruction_edit_is_the_same(instruct, name):
    """VIA: gather-swap on InstructPix2Pix, from shared noise."""

    def act(backbone, text):
        source = add_noise(backbone, clip(), text(""), steps=STEPS)
        plan = PLANS[name](backbone, text)
        return edit(backbone, source, text("make it blue"), negative=text(""), plan=plan, guidance=5.0)

    ours, core = both(instruct, act)
    assert_same_edit(core, ours)


def test_an_adapter_is_not_trained_on_it(instruct):
    from weft.backbones.lora import adapt

    with pytest.raises(ValueError, match="ComfyUI's own model"):
        adapt(instruct[1], lambda *args: None, rank=2)


def test_a_lora_on_the_model_acts_as_one_that_is_fused(sd_folder):
    """By core's own LoRA loader on one side, its product added to diffusers' weight on the other."""
    ours, core = twins(sd_folder)
    name = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    layer = ours.denoiser.network.get_submodule(name)
    down, up = torch.randn(2, layer.weight.shape[1]) / 4, torch.randn(layer.weight.shape[0], 2) / 4
    layer.weight.data += (up @ down).double()
    key = f"lora_unet_{name.replace('.', '_')}"
    lora = {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down, f"{key}.alpha": torch.tensor(2.0)}
    patcher, _ = comfy.sd.load_lora_for_models(core.denoiser.patcher, None, lora, 1.0, 0.0)
    patched = from_comfy(patcher, StandInVAE())
    assert patched.denoiser.fingerprint != core.denoiser.fingerprint
    before, got = (
        of_plan(backbone, lambda text: prompt_pair((ours, core), text)[1], "plain") for backbone in (core, patched)
    )
    want = of_plan(ours, lambda text: prompt_pair((ours, core), text)[0], "plain")
    assert (got - before).abs().max() > 1e-3
    assert_same_edit(got, want)
