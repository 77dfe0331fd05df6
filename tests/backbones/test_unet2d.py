"""Stable Diffusion and InstructPix2Pix as clips see them: frames are the batch."""

import json
import shutil
from dataclasses import dataclass, field, replace

import pytest
import torch

from weft.backbones.diffusers import parts
from weft.backbones.diffusers.loading import load_backbone
from weft.backbones.diffusers.text import embedding_for, prompt_of
from weft.backbones.diffusers.unet2d import UNet2D
from weft.backbones.memory import PlainMemory
from weft.engine.call import Evaluation
from weft.engine.plan import Control, EditPlan
from weft.engine.words import NEGATIVE, POSITIVE, SOURCE, SOURCE_NEGATIVE, UNCONDITIONAL, Layout, Row
from weft.tests.numerics import assert_close
from weft.tests.tiny import make_latents

SELF = "transformer_blocks.0.attn1"
ROWS = (SOURCE, UNCONDITIONAL, NEGATIVE, POSITIVE)


def evaluation(backbone, rows=(NEGATIVE, POSITIVE), frames=3, size=(5, 9)):
    texts = ["a red square", "", "a small circle", "a blue cross"]
    prompts = tuple(backbone.text.embed(t) for t in texts[: len(rows)])
    latents = torch.stack([make_latents(frames, size, seed) for seed in range(len(rows))])
    image = make_latents(frames, size, 9) if backbone.denoiser.sees_source else None
    return Evaluation(latents, 501.0, prompts, rows, image=image)


@torch.no_grad()
def predict(backbone, e, *controls):
    return backbone.denoiser.predict(e, EditPlan(controls))


def stable_diffusion(monkeypatch, **config):
    """A full-size network without its weights."""
    from diffusers import UNet2DConditionModel

    monkeypatch.setattr(parts, "fingerprint", lambda *modules: "none")
    with torch.device("meta"):
        network = UNet2DConditionModel(cross_attention_dim=768, **config)
    return UNet2D("sd", network, Layout(8), {}, PlainMemory("cpu"), 0.18215)


def test_sites_and_blocks_of_stable_diffusion_are_those_of_the_papers(monkeypatch):
    sd = stable_diffusion(monkeypatch)
    places = [f"down_blocks.{i}.attentions.{j}" for i in range(3) for j in range(2)] + ["mid_block.attentions.0"]
    places += [f"up_blocks.{i}.attentions.{j}" for i in range(1, 4) for j in range(3)]
    assert [s.layer for s in sd.sites if s.kind == "spatial"] == [f"{p}.{SELF}" for p in places]
    assert [s.kind for s in sd.sites] == ["spatial", "cross"] * 16
    halves = ["encoder"] * 6 + ["middle"] + ["decoder"] * 9
    assert [s.half for s in sd.sites if s.kind == "cross"] == halves
    assert [s.level for s in sd.sites if s.kind == "cross"] == [0, 0, 1, 1, 2, 2, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0]
    dift = [(b.name, b.level) for b in sd.blocks if b.kind == "stage"]
    assert dift == [("up_blocks.0", 2), ("up_blocks.1", 1), ("up_blocks.2", 0), ("up_blocks.3", 0)]
    names = [b.name for b in sd.blocks if b.kind == "residual"]
    assert names[4] == "up_blocks.1.resnets.1.conv2"  # plug-and-play's layer 4


def test_a_clip_is_the_network_frame_by_frame(tiny_image64):
    e = evaluation(tiny_image64)
    got, network = predict(tiny_image64, e), tiny_image64.denoiser.network
    assert got.shape == e.latents.shape
    assert got.dtype == torch.float32
    with torch.no_grad():
        for r, prompt in enumerate(e.prompts):
            for f in range(3):
                one = (
                    network(e.latents[r, f : f + 1].double(), 501, prompt.cond["embedding"].double()).sample[0].float()
                )
                assert_close(got[r, f], one)


def test_an_instruction_model_sees_the_unscaled_picture_but_in_the_unconditional_row(tiny_instruct64):
    e = evaluation(tiny_instruct64, ROWS)
    got, picture = predict(tiny_instruct64, e), e.image / tiny_instruct64.codec.vae.config.scaling_factor
    with torch.no_grad():
        for r, row in enumerate(ROWS):
            given = torch.zeros_like(picture) if row == UNCONDITIONAL else picture
            x = torch.cat([e.latents[r], given], 1).double()
            text = e.prompts[r].cond["embedding"].double().expand(3, -1, -1)
            assert_close(got[r], tiny_instruct64.denoiser.network(x, 501, text).sample.float())


def test_an_instruction_model_without_a_picture_is_refused(tiny_instruct):
    with pytest.raises(ValueError, match="is given the source's picture at every evaluation, and there is none"):
        predict(tiny_instruct, replace(evaluation(tiny_instruct), image=None))


def test_frames_may_have_prompts_of_their_own(tiny_image64):
    e = evaluation(tiny_image64, (POSITIVE,))
    texts = [tiny_image64.text.embed(t) for t in ("a red square", "a blue cross", "a small circle")]
    each = prompt_of(torch.cat([t.cond["embedding"] for t in texts]), "each its own", e.prompts[0].encoder)
    assert each.frames == 3
    got = predict(tiny_image64, replace(e, prompts=(each,)))
    for f in range(3):
        alone = replace(e, prompts=(texts[f],)).select([f])
        assert_close(got[:, f], predict(tiny_image64, alone)[:, 0])
        assert_close(got[:, f], predict(tiny_image64, replace(e, prompts=(each,)).select([f]))[:, 0])
    with pytest.raises(ValueError, match="the prompt 'each its own' is for 2 frames, and this is 3"):
        predict(tiny_image64, replace(e, prompts=(each.select([0, 1]),)))


@dataclass(frozen=True, eq=False)
class Watch(Control):
    calls: list = field(default_factory=list)

    def attention(self, call, attend):
        self.calls.append((call, call.q, call.k, call.v))
        return attend(call)


def test_controls_see_frames_as_groups(tiny_image64):
    e, watch = evaluation(tiny_image64), Watch()
    assert_close(predict(tiny_image64, e, watch), predict(tiny_image64, e))
    for call, q, k, v in watch.calls:
        _, h, w = call.grid
        assert q.shape[:2] == (2, 3)
        assert q.shape[3] == h * w
        assert call.tokens.shape == (2, 3, h * w, q.shape[2] * q.shape[4])
        if call.site.kind == "spatial":
            again = call.project(call.tokens)
            assert_close(again[0], k)
            assert_close(again[1], v)
        else:
            assert k.shape[3] == e.prompts[0].cond["embedding"].shape[1]
    assert [call.site for call, *_ in watch.calls] == list(tiny_image64.denoiser.sites)


def test_selected_frames_are_those_frames_alone(tiny_instruct64):
    e = evaluation(tiny_instruct64, ROWS, frames=5)
    part = e.select([3, 1])
    assert part.frames == (3, 1)
    assert part.select([1]).frames == (1,)
    assert_close(predict(tiny_instruct64, part), predict(tiny_instruct64, e)[:, [3, 1]])


def test_one_frame_is_enough_for_an_image_model(tiny_image):
    frames = torch.rand(1, 12, 20, 3)
    latents = tiny_image.codec.encode(frames)
    assert latents.shape == (1, 4, 6, 10)
    assert tiny_image.codec.decode(latents).shape == frames.shape
    with pytest.raises(ValueError, match="at least 1 frame, got 0"):
        tiny_image.codec.encode(frames[:0])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"in_channels": 9}, "takes 9 channels and the latents have 4: inpainting and depth models are not supported"),
        (
            {"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": 64},
            "is not supported, as it is an SDXL-like model: use Stable Diffusion 1.x or 2.x",
        ),
    ],
)
def test_relatives_of_stable_diffusion_are_refused(tiny_image_folder, tmp_path, change, complaint):
    from diffusers import UNet2DConditionModel

    folder = shutil.copytree(tiny_image_folder, tmp_path / "model")
    config = json.loads((folder / "unet" / "config.json").read_text())
    extra = {"addition_time_embed_dim": 8} if "addition_embed_type" in change else {}
    UNet2DConditionModel.from_config({**config, **change, **extra}).save_pretrained(folder / "unet")
    with pytest.raises(ValueError, match=complaint):
        load_backbone(folder, memory=PlainMemory("cpu"))


def test_the_sources_negative_row_is_given_the_picture_too_and_so_is_every_region(tiny_instruct64):
    """All but "unconditional", of whatever region."""
    rows = (SOURCE_NEGATIVE, Row("unconditional", 1), Row("negative", 1), Row("positive", 1))
    want = (NEGATIVE, UNCONDITIONAL, NEGATIVE, POSITIVE)
    e = evaluation(tiny_instruct64, rows)
    assert_close(predict(tiny_instruct64, e), predict(tiny_instruct64, replace(e, rows=want)))


def test_one_embedding_serves_all_frames(tiny_image):
    prompt = tiny_image.text.embed("a red square")
    got = embedding_for(prompt, 3, torch.device("cpu"), torch.float64)
    assert (got.shape, got.dtype) == ((3, 16, 64), torch.float64)
    assert_close(got, prompt.cond["embedding"].double().expand(3, -1, -1))


@pytest.mark.parametrize("size", [(5, 9), (6, 10), (1, 3)])
def test_places_know_their_grids(tiny_image, size):
    e, shapes, watch = evaluation(tiny_image, size=size), {}, Watch()

    @dataclass(frozen=True, eq=False)
    class Shapes(Control):
        def feature(self, features):
            shapes[features.block] = tuple(features.x.shape)
            return features.x

    predict(tiny_image, e, watch, Shapes())
    grid, denoiser = tiny_image.denoiser.grid, tiny_image.denoiser
    for call, *_ in watch.calls:
        assert call.grid == grid(call.site, e.latents.shape) == grid(call.site, e.latents.shape[1:])
        assert call.tokens.shape[2] == call.grid[1] * call.grid[2]
    assert list(shapes) == list(denoiser.blocks)
    assert all((shape[1], *shape[-2:]) == grid(block, e.latents.shape) for block, shape in shapes.items())


def test_memory_is_reckoned_by_rows_frames_and_cells(tiny_image, tiny_image64):
    cell = parts.ACTIVATION_BYTES
    assert tiny_image.denoiser.bytes(1, 1, (1, 1)) == 4 * cell
    assert tiny_image.denoiser.bytes(3, 5, (6, 10)) == 4 * cell * 3 * 5 * 60
    assert tiny_image64.denoiser.bytes(1, 1, (1, 1)) == 8 * cell  # by the network's own precision
    assert tiny_image.denoiser.bytes(2, 1, (3, 1), grad=True) == 8 * tiny_image.denoiser.bytes(2, 1, (3, 1))
    assert tiny_image.denoiser.free() is None  # nothing is known to limit main memory


def test_only_evaluations_without_controls_inside_are_compiled(tiny_image, monkeypatch):
    seen = []

    def compiled(network):
        return lambda *args, **kwargs: seen.append(args[0].shape) or network(*args, **kwargs)

    monkeypatch.setattr(torch, "compile", compiled)
    denoiser = UNet2D(
        "a", tiny_image.denoiser.network, Layout(8), tiny_image.denoiser.scheduler_config, PlainMemory("cpu")
    )
    backbone, e = replace(tiny_image, denoiser=denoiser), evaluation(tiny_image)
    plain = predict(backbone, e)
    assert not seen
    denoiser.compiles = True
    assert torch.equal(predict(backbone, e), plain)
    assert len(seen) == 1
    predict(backbone, e, Watch())
    predict(backbone, replace(e, recompute=True))
    assert len(seen) == 1
    predict(backbone, e, Control())  # acts around evaluations alone
    assert len(seen) == 2
