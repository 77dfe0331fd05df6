"""LaVie: the names and sizes of the released network, Stable Diffusion's numbers where they agree, and a literal
reading of its attention over time."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from weft.backbones.diffusers import parts
from weft.backbones.diffusers.loading import load_backbone
from weft.backbones.diffusers.model_folder import SAFE_TORCH
from weft.backbones.lavie.attention import TemporalAttention, buckets
from weft.backbones.lavie.denoiser import LaVie
from weft.backbones.lavie.network import LaVieUNet
from weft.backbones.memory import PlainMemory
from weft.engine.call import Evaluation
from weft.engine.edit import edit
from weft.engine.inversion import invert
from weft.engine.plan import PLAIN, Control
from weft.engine.probe import read_calls
from weft.engine.words import NEGATIVE, POSITIVE, SOURCE, Layout
from weft.methods.injection import FeatureInjection
from weft.methods.latent_blend import LatentBlend
from weft.methods.spatio_temporal import SpatioTemporalAttention
from weft.methods.stem import STEMAttention
from weft.methods.str_inputs import score_inputs, site_pairs
from weft.methods.str_match import STRLatentOptimizer
from weft.tests.numerics import assert_close
from weft.tests.tiny import make_latents, make_lavie, make_lavie_folder

PICKLES_ARE_SAFE = tuple(int(n) for n in torch.__version__.split(".")[:2]) >= SAFE_TORCH
RELEASED = ".pt" if PICKLES_ARE_SAFE else ".safetensors"
BLOCKS = [f"down_blocks.{i}.attentions.{j}" for i in range(3) for j in range(2)] + ["mid_block.attentions.0"]
BLOCKS += [f"up_blocks.{i}.attentions.{j}" for i in range(1, 4) for j in range(3)]
FRAMES, SIZE = 3, (6, 10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_lavie_folder(tmp_path_factory.mktemp("lavie") / "lavie", suffix=RELEASED)


@pytest.fixture(scope="module")
def backbone(folder):
    return load_backbone(folder, dtype="float32", memory=PlainMemory("cpu"))


@pytest.fixture
def exact(folder):
    loaded = load_backbone(folder, dtype="float32", memory=PlainMemory("cpu"))
    nn.Module.to(loaded.denoiser.network, torch.float64)
    return loaded


def image_model(**config):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, **config)


# ---- names and sizes ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full():
    with torch.device("meta"):
        return LaVieUNet()


def test_names_and_shapes_are_those_of_the_released_model(full):
    """830 tensors: Stable Diffusion 1.4's 686, and 9 in each of the 16 blocks of attention."""
    with torch.device("meta"):
        want = {name: tuple(tensor.shape) for name, tensor in image_model().state_dict().items()}
    assert len(want) == 686
    for block in BLOCKS:
        width = want[f"{block}.norm.weight"][0]
        at = f"{block}.transformer_blocks.0"
        want |= {f"{at}.attn_temp.{to}.weight": (width, width) for to in ("to_q", "to_k", "to_v", "to_out.0")}
        want |= {f"{at}.attn_temp.to_out.0.bias": (width,), f"{at}.attn_temp.rotary_emb.freqs": (16,)}
        want |= {f"{at}.norm_temp.{end}": (width,) for end in ("weight", "bias")}
        want[f"{at}.attn_temp.time_rel_pos_bias.relative_attention_bias.weight"] = (32, 8)
    assert {name: tuple(tensor.shape) for name, tensor in full.state_dict().items()} == want
    assert len(want) == 830
    assert sum(math.prod(shape) for shape in want.values()) == 909_124_356


def test_sites_are_those_of_the_paper_notes(full, monkeypatch):
    monkeypatch.setattr(parts, "fingerprint", lambda *modules: "none")
    denoiser = LaVie("lavie", full, Layout(8), {}, PlainMemory("cpu"))
    at = [f"{block}.transformer_blocks.0" for block in BLOCKS]
    assert [s.layer for s in denoiser.sites] == [f"{a}.{n}" for a in at for n in ("attn1", "attn2", "attn_temp")]
    assert [s.kind for s in denoiser.sites] == ["spatial", "cross", "temporal"] * 16
    levels = [0, 0, 1, 1, 2, 2, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0]
    assert [s.level for s in denoiser.sites] == [n for n in levels for _ in range(3)]
    assert [(a.layer, b.layer) for a, b in site_pairs(denoiser, "all")] == [
        (f"{a}.attn1", f"{a}.attn_temp") for a in at
    ]
    assert len(site_pairs(denoiser)) == 11
    assert [denoiser.grid(a, (16, 4, 40, 64))[1:] for a, _ in site_pairs(denoiser)] == [
        *[(20, 32)] * 2, *[(10, 16)] * 2, (5, 8), *[(10, 16)] * 3, *[(20, 32)] * 3
    ]  # fmt: skip
    assert {full.get_submodule(s.layer).heads for s in denoiser.sites} == {8}
    residual = [b.name for b in denoiser.blocks if b.kind == "residual"]
    assert residual == [f"up_blocks.{i}.resnets.{j}.conv2" for i in range(4) for j in range(3)]


# ---- the part that is Stable Diffusion's ----------------------------------------------------------------------------


class OfTheClip(nn.Module):
    """A group norm of diffusers, with the statistics of all frames."""

    def __init__(self, norm, frames):
        super().__init__()
        self.norm, self.frames = norm, frames

    def forward(self, x):
        joint = x.unflatten(0, (-1, self.frames)).movedim(2, 1)
        return self.norm(joint).movedim(1, 2).flatten(0, 1)


@pytest.mark.parametrize(("frames", "size"), [(1, (8, 16)), (3, (8, 16)), (2, (6, 10)), (5, (5, 9))])
def test_without_attention_over_time_it_is_the_image_model_but_for_the_norms_over_the_clip(frames, size):
    from diffusers import UNet2DConditionModel

    network = make_lavie().double()
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, TemporalAttention):
                nn.init.zeros_(layer.to_out[0].weight)
                nn.init.zeros_(layer.to_out[0].bias)
    image = UNet2DConditionModel(
        block_out_channels=network.config.block_out_channels, attention_head_dim=2, cross_attention_dim=64
    ).double()
    own = {name: t for name, t in network.state_dict().items() if "_temp" not in name}
    image.load_state_dict(own)
    if frames > 1:
        image.conv_norm_out = OfTheClip(image.conv_norm_out, frames)
        for layer in image.modules():
            if type(layer).__name__ == "ResnetBlock2D":
                layer.norm1, layer.norm2 = (OfTheClip(norm, frames) for norm in (layer.norm1, layer.norm2))
    z, text = torch.randn(2, frames, 4, *size, dtype=torch.float64), torch.randn(2, 7, 64, dtype=torch.float64)
    with torch.no_grad():
        got = network(z, 321, text)
        want = image(z.flatten(0, 1), 321, text.repeat_interleave(frames, 0)).sample.unflatten(0, (2, frames))
    # Both make the waves of the time step in float32, which the rest then differs by.
    assert_close(got.float(), want.float())


def test_the_norms_over_the_clip_matter():
    network = make_lavie().double()
    z, text = torch.randn(1, 5, 4, 8, 8, dtype=torch.float64), torch.randn(1, 7, 64, dtype=torch.float64)
    z[:, 1:] *= 3
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, TemporalAttention):
                layer.to_out[0].weight.zero_()
                layer.to_out[0].bias.zero_()
        assert not torch.allclose(network(z, 321, text)[:, :1], network(z[:, :1], 321, text), rtol=1e-2)


# ---- attention over time --------------------------------------------------------------------------------------------


def test_distances_fall_into_the_buckets_of_the_released_model():
    found = buckets(32)
    back = [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 12, 12, 13, 13, 13, 14, 14, 14, 14]
    assert found[:, 0].tolist() == [*back, *[15] * 5]
    assert found[0].tolist() == [0, *(n + 16 for n in [*back, *[15] * 5][1:])]
    assert all(found[i, j] == found[i + 1, j + 1] for i in range(31) for j in range(31))


def literal_maps(layer, x, frames):
    """[B, H, F, F] of a layer over time on x [B, F, C], element by element."""
    size = x.shape[-1] // layer.heads
    table = layer.time_rel_pos_bias.relative_attention_bias.weight
    maps = torch.zeros(len(x), layer.heads, frames, frames, dtype=x.dtype)
    for b in range(len(x)):
        for h in range(layer.heads):

            def turn(vector, f):
                out = vector.clone()
                for pair in range(16):
                    angle = f * 10000 ** (-2 * pair / 32)
                    u, v = vector[2 * pair].item(), vector[2 * pair + 1].item()
                    out[2 * pair] = u * math.cos(angle) - v * math.sin(angle)
                    out[2 * pair + 1] = v * math.cos(angle) + u * math.sin(angle)
                return out

            q, k = (to(x[b])[:, h * size : (h + 1) * size] for to in (layer.to_q, layer.to_k))
            for i in range(frames):
                for j in range(frames):
                    n = i - j
                    at = abs(n) if abs(n) < 8 else min(15, 8 + int(math.log(abs(n) / 8) / math.log(4) * 8))
                    bias = table[at + (16 if n < 0 else 0), h]
                    maps[b, h, i, j] = turn(q[i], i) @ turn(k[j], j) * size**-0.5 + bias
    return maps.softmax(-1)


@pytest.mark.parametrize("frames", [3, 12])
def test_its_maps_turn_and_add_by_distance(exact, frames):
    layer = "up_blocks.2.attentions.1.transformer_blocks.0.attn_temp"
    spatial = layer.replace("attn_temp", "attn1")
    e = Evaluation(make_latents(frames, (4, 4))[None], 321, (exact.text.embed("a red square"),), (SOURCE,))
    with torch.no_grad():
        calls = read_calls(exact.denoiser.predict, e, PLAIN, SOURCE, {layer, spatial})
        call = calls[layer]
        assert call.q.shape == (1, 4, 2, frames, 32)
        assert call.bias.shape == (1, 1, 2, frames, frames)
        want = literal_maps(exact.denoiser.network.get_submodule(layer), call.tokens[0], frames)
        _, _, maps = score_inputs((calls[spatial], call), per_head=True)
        # The angles are made in float64 of frequencies in float32.
        assert_close(maps.transpose(0, 1).float(), want.float())
        k, v = call.project(call.tokens)
    assert_close(k, call.k)
    assert_close(v, call.v)


def test_scores_of_maps_see_the_distance_too(exact):
    """The baseline's distance of temporal maps is that of the maps with what is added to their logits."""
    from weft.methods.str_match import _map_distance

    at = "up_blocks.2.attentions.1.transformer_blocks.0."
    layers = {f"{at}attn1", f"{at}attn_temp"}
    pairs = []
    with torch.no_grad():
        for seed in (0, 1):
            e = Evaluation(make_latents(seed=seed)[None], 321, (exact.text.embed("a red square"),), (SOURCE,))
            calls = read_calls(exact.denoiser.predict, e, PLAIN, SOURCE, layers)
            pairs.append((calls[f"{at}attn1"], calls[f"{at}attn_temp"]))
        temporal = [score_inputs(p, per_head=False)[2] for p in pairs]
        spatial = [(p[0].q[0] @ p[0].k[0].transpose(-1, -2) * p[0].scale).softmax(-1).mean(1) for p in pairs]
        want = (temporal[0] - temporal[1]).square().sum() + (spatial[0] - spatial[1]).square().sum()
        assert_close(_map_distance(*pairs), want)


# ---- as a model -----------------------------------------------------------------------------------------------------


class Idle(Control):
    def attention(self, call, attend):
        return attend(call)


@pytest.mark.parametrize(("frames", "size"), [(3, (6, 10)), (5, (5, 9)), (2, (1, 3))])
def test_controls_that_do_nothing_change_nothing(exact, frames, size):
    z = torch.stack([make_latents(frames, size, seed) for seed in (0, 1)])
    prompts = exact.text.embed("a red square"), exact.text.embed("a blue cross")
    e = Evaluation(z, 321.0, prompts, (NEGATIVE, POSITIVE))
    with torch.no_grad():
        got = exact.denoiser.predict(e, PLAIN.then(Idle()))
        assert_close(got, exact.denoiser.predict(e))
        for row in (0, 1):
            alone = exact.denoiser.network(z[row : row + 1].double(), 321.0, prompts[row].cond["embedding"].double())
            assert_close(got[row], alone[0].float())


METHODS = {
    "str": STRLatentOptimizer(strength=0.5),
    "maps": STRLatentOptimizer(strength=0.5, score="maps"),
    "injection": FeatureInjection(),
    "spatio-temporal": SpatioTemporalAttention(),
    "stem": STEMAttention(bases=8),
    "blend": LatentBlend(torch.eye(12, 20)[None]),
}


@pytest.mark.parametrize("method", METHODS)
def test_whole_edits(backbone, method):
    trajectory = invert(backbone, make_latents(), backbone.text.embed("a red square"), steps=2)
    target = backbone.text.embed("a blue cross")
    plain = edit(backbone, trajectory, target, guidance=2.0)
    edited = edit(backbone, trajectory, target, plan=PLAIN.then(METHODS[method]), guidance=2.0)
    assert edited.isfinite().all()
    assert not torch.equal(edited, plain)


def test_blocks_evaluated_again_give_the_same_gradient(exact):
    layers = {site.layer for pair in site_pairs(exact.denoiser) for site in pair}
    gradients = []
    for recompute in (False, True):
        z = make_latents().requires_grad_()
        e = Evaluation(z[None], 321, (exact.text.embed("a red square"),), (SOURCE,), recompute=recompute)
        calls = read_calls(exact.denoiser.predict, e, PLAIN, SOURCE, layers)
        loss = sum((call.q * call.k.sin()).square().mean() for call in calls.values())
        gradients.append(torch.autograd.grad(loss, z)[0])
    assert gradients[0].abs().max() > 0
    assert_close(gradients[1], gradients[0])


def test_the_noise_levels_are_those_it_was_trained_with(backbone):
    schedule = backbone.denoiser.schedule(50)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    assert schedule.timesteps == tuple(map(float, range(1, 1000, 20)))
    assert schedule.prediction == "epsilon"
    want = [alpha_bar[0].sqrt().item(), *alpha_bar[1::20].sqrt().tolist()]
    assert schedule.signal == pytest.approx(want, rel=1e-5)


def test_its_turning_is_exact_in_half_precision(folder):
    half = load_backbone(folder, dtype="float16", memory=PlainMemory("cpu"))
    layer = half.denoiser.network.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn_temp")
    assert layer.to_q.weight.dtype == torch.float16
    x = torch.randn(2, 16, 40, dtype=torch.float16)
    assert torch.equal(layer.placed(x), layer.placed(x.float()).half())


# ---- the file -------------------------------------------------------------------------------------------------------


def test_a_file_is_what_was_saved_wherever_its_constant_is(folder, backbone, tmp_path):
    want = make_lavie().state_dict()
    got = backbone.denoiser.network.state_dict()
    assert all(torch.equal(got[name], want[name]) for name in want)
    from safetensors.torch import save_file

    other = tmp_path / "lavie"
    shutil.copytree(folder / "stable-diffusion-v1-4", other / "stable-diffusion-v1-4")
    shutil.rmtree(other / "stable-diffusion-v1-4" / "unet")  # LaVie takes its place
    save_file({n: t for n, t in want.items() if not n.endswith("freqs")}, other / "lavie_base.safetensors")
    again = load_backbone(other, dtype="float32", memory=PlainMemory("cpu"))
    assert again.denoiser.fingerprint == backbone.denoiser.fingerprint


def spoiled(folder: Path, to: Path, edit) -> Path:
    from safetensors.torch import save_file

    shutil.copytree(folder / "stable-diffusion-v1-4", to / "stable-diffusion-v1-4")
    tensors = make_lavie().state_dict()
    edit(tensors)
    save_file(tensors, to / "lavie_base.safetensors")
    return to


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda t: t.pop("conv_out.bias"), "is not LaVie's base model: of the 828 .* 1 are missing.*conv_out.bias"),
        (lambda t: t.update(extra=torch.ones(1)), "is not LaVie's base model: .* 1 are missing, beyond .*extra"),
        (lambda t: t.update({"conv_in.bias": torch.ones(3)}), "of another shape, conv_in.bias among them"),
        (lambda t: t.clear() or t.update(x=torch.ones(1)), "is not LaVie's base model: it lacks"),
    ],
)
def test_another_network_is_refused(folder, tmp_path, edit, match):
    with pytest.raises(ValueError, match=match):
        load_backbone(spoiled(folder, tmp_path / "lavie", edit), memory=PlainMemory("cpu"))


def test_what_is_missing_beside_it_is_named(folder, tmp_path):
    copy = spoiled(folder, tmp_path / "lavie", lambda t: None)
    shutil.rmtree(copy / "stable-diffusion-v1-4" / "vae")
    with pytest.raises(ValueError, match="'stable-diffusion-v1-4' has no vae: is the download complete"):
        load_backbone(copy, memory=PlainMemory("cpu"))
    shutil.rmtree(copy / "stable-diffusion-v1-4")
    with pytest.raises(ValueError, match=r"has no folder of Stable Diffusion 1.4 beside lavie_base.safetensors"):
        load_backbone(copy, memory=PlainMemory("cpu"))
