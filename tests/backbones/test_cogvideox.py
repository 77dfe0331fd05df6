"""CogVideoX: what diffusers' classes give, with attention over the whole clip that controls may rewrite."""

import json
import math
import shutil

import diffusers
import pytest
import torch

from weft.backbones.diffusers.loading import load_backbone
from weft.backbones.diffusers.parts import make_schedule
from weft.backbones.memory import PlainMemory
from weft.backbones.preview import LatentPreview
from weft.engine.call import Evaluation
from weft.engine.edit import edit
from weft.engine.inversion import invert
from weft.engine.plan import PLAIN, Control
from weft.engine.probe import read_calls
from weft.engine.words import NEGATIVE, POSITIVE, SOURCE, Layout
from weft.kernels import reduce_rows
from weft.methods.coupled_flow import CoupledFlow
from weft.methods.latent_blend import LatentBlend
from weft.methods.str_direct import direct_rows
from weft.methods.str_inputs import score_inputs, site_pairs
from weft.methods.str_match import STRLatentOptimizer
from weft.methods.str_view import look
from weft.tests.numerics import assert_close, assert_gradient
from weft.tests.tiny import COGVIDEOX_SCHEDULER, make_cogvideox_folder

OLD = tuple(int(n) for n in diffusers.__version__.split(".")[:2]) < (0, 31)
HEIGHT, WIDTH, FRAMES = 64, 96, 9  # of the clip: 8x12 cells, 4x6 tokens, 3 latent frames


def test_an_old_diffusers_is_told_to_be_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(diffusers, "__version__", "0.30.3")
    from weft.backbones.diffusers.cogvideox import require_diffusers

    with pytest.raises(ValueError, match=r"needs diffusers 0\.31 or newer, this is 0\.30\.3"):
        require_diffusers()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    if OLD:
        pytest.skip("this diffusers has no CogVideoX 5b")
    root = tmp_path_factory.mktemp("cogvideox")
    return {
        "2b": make_cogvideox_folder(root / "2b", rotary=False),
        "5b": make_cogvideox_folder(root / "5b"),
    }


@pytest.fixture(scope="module", params=["2b", "5b"])
def backbone(request, folders):
    return load_backbone(folders[request.param], dtype="float32", memory=PlainMemory("cpu"))


@pytest.fixture
def exact(folders):
    """A 5b in float64."""
    loaded = load_backbone(folders["5b"], dtype="float32", memory=PlainMemory("cpu"))
    torch.nn.Module.to(loaded.denoiser.network, torch.float64)
    return loaded


def clip(seed=0, frames=FRAMES):
    return torch.rand(frames, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(seed))


def latents(frames=3, seed=0):
    """[F, 4, h, w] as the network sees them."""
    return torch.randn(frames, 4, 8, 12, generator=torch.Generator().manual_seed(seed))


def call_of(backbone, z, layer="transformer_blocks.1.attn1", text="a red square"):
    e = Evaluation(z[None], 321.0, (backbone.text.embed(text),), (SOURCE,))
    return read_calls(backbone.denoiser.predict, e, PLAIN, SOURCE, {layer})[layer]


# ---- the network ----------------------------------------------------------------------------------------------------


def test_the_output_is_that_of_diffusers(folders, backbone):
    z = torch.stack([latents(seed=s) for s in (0, 1)])
    prompts = backbone.text.embed("a red square"), backbone.text.embed("a blue cross")
    network = backbone.denoiser.network
    turns = None
    if network.config.use_rotary_positional_embeddings:
        from diffusers.models.embeddings import get_3d_rotary_pos_embed

        turns = get_3d_rotary_pos_embed(16, ((0, 0), (4, 6)), (4, 6), 3)  # the size it was made for: nothing is cut
    with torch.no_grad():
        got = backbone.denoiser.predict(Evaluation(z, 321.0, prompts, (NEGATIVE, POSITIVE)))
        text = torch.cat([p.cond["embedding"] for p in prompts])
        want = network(z, text, torch.tensor([321.0, 321.0]), image_rotary_emb=turns).sample
    assert_close(got, want)


class Idle(Control):
    def attention(self, call, attend):
        return attend(call)


@pytest.mark.parametrize("frames", [2, 3, 5])
def test_controls_that_do_nothing_change_nothing(exact, frames):
    z, prompt = latents(frames)[None], exact.text.embed("a red square")
    processors = {name: id(p) for name, p in exact.denoiser.network.attn_processors.items()}
    with torch.no_grad():
        e = Evaluation(z, 321.0, (prompt,), (POSITIVE,))
        assert_close(exact.denoiser.predict(e, PLAIN.then(Idle())), exact.denoiser.predict(e))
    assert {name: id(p) for name, p in exact.denoiser.network.attn_processors.items()} == processors


def test_sites_are_the_layers_and_a_call_is_text_then_clip(exact):
    sites = exact.denoiser.sites
    assert [s.layer for s in sites] == [f"transformer_blocks.{i}.attn1" for i in range(4)]
    assert {(s.kind, s.level) for s in sites} == {("joint", 0)}
    z = latents()
    call = call_of(exact, z)
    assert call.grid == (3, 4, 6)
    assert call.q.shape == call.k.shape == (1, 1, 2, 16 + 3 * 24, 16)
    k, v = call.project(call.tokens)
    assert_close(k, call.k)
    assert_close(v, call.v)
    # A cell of the first layer's input belongs to the token of its frame, row and column alone.
    first = call_of(exact, z, "transformer_blocks.0.attn1").tokens
    z[1, 0, 5, 9] += 1
    moved = (call_of(exact, z, "transformer_blocks.0.attn1").tokens - first).abs().amax((0, 1, 3))
    assert moved.nonzero().flatten().tolist() == [16 + 1 * 24 + 2 * 6 + 4]


def test_full_size_networks_have_the_layers_and_heads_of_the_paper_notes(folders):
    for layers, heads, rotary in ((30, 30, False), (42, 48, True)):
        with torch.device("meta"):
            network = diffusers.CogVideoXTransformer3DModel(
                num_layers=layers, num_attention_heads=heads, use_rotary_positional_embeddings=rotary
            )
        assert len(network.transformer_blocks) == layers
        attention = network.transformer_blocks[0].attn1
        assert (attention.heads, attention.inner_dim // attention.heads) == (heads, 64)
        assert attention.scale == 64**-0.5


def test_str_looks_at_every_second_layer_of_the_middle_half(exact):
    assert [a.order for a, b in site_pairs(exact.denoiser)] == [1]
    assert [a.order for a, b in site_pairs(exact.denoiser, "all")] == [0, 1, 2, 3]


# ---- noise levels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_noise_levels_are_those_of_its_scheduler(folders, shift):
    config = {**COGVIDEOX_SCHEDULER, "snr_shift_scale": shift}
    scheduler = diffusers.CogVideoXDDIMScheduler.from_config(config)
    schedule = make_schedule(config, 50)
    assert schedule.timesteps == tuple(range(19, 1000, 20))
    assert schedule.prediction == "v_prediction"
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    plain = torch.cumprod(1 - betas, 0)
    shifted = (plain / (shift + (1 - shift) * plain)).sqrt()
    shifted = (shifted - shifted[-1]) * shifted[0] / (shifted[0] - shifted[-1])  # zero at the end
    assert schedule.signal == pytest.approx([1.0, *shifted[19::20].tolist()], abs=1e-7)
    assert (schedule.signal[-1], schedule.noise[-1]) == (0, 1)
    scheduler.set_timesteps(50)
    z, v = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    for level in (50, 30, 1):
        want = scheduler.step(v, int(schedule.label(level)), z).prev_sample
        assert_close(schedule.step(z, v, level, level - 1), want, torch.float32)


def test_inversion_and_back_returns_the_clip_within_the_schedules_own_error(backbone):
    z, prompt = backbone.codec.encode(clip()), backbone.text.embed("a red square")

    def error(**how):
        trajectory = invert(backbone, z, prompt, steps=25, **how)
        return ((edit(backbone, trajectory, prompt, guidance=1.0) - z).norm() / z.norm()).item()

    warm, twice, exact, paper = error(), error(evaluations=2), error(evaluations=12), error(convention="paper")
    assert exact < 1e-3
    assert exact < twice < warm < paper / 2
    assert warm < 0.1


# ---- STR ------------------------------------------------------------------------------------------------------------


def attention_of(call):
    """[H, F N, M] of the clip's tokens to all, by the definition."""
    q, k = call.q[0, 0], call.k[0, 0]
    return (q @ k.transpose(1, 2) * call.scale).softmax(-1)[:, -3 * 24 :]


@pytest.mark.parametrize("neighbours", [1, 2])
@pytest.mark.parametrize("per_head", [False, True])
def test_the_direct_score_is_the_full_attention_by_brute_force(exact, neighbours, per_head):
    source, target = call_of(exact, latents()), call_of(exact, latents(seed=1))
    scores = []
    for call in (source, target):
        a = attention_of(call)[..., 16:].unflatten(-1, (3, 24)).unflatten(1, (3, 24))  # [H, i, p, j, q]
        score = torch.zeros(2, 3, 24, 24, dtype=torch.float64)
        for i in range(3):
            for j in range(3):
                if 0 < abs(i - j) <= neighbours:
                    for p in range(24):
                        score[:, i, p] += a[:, i, p, j] + a[:, j, :, i, p]
        scores.append(score if per_head else score.mean(0))
    a, b = scores
    want = torch.stack([(a * b).sum(-1), (a * a).sum(-1), (b * b).sum(-1)], -1)
    assert_close(direct_rows(source, target, neighbours=neighbours, per_head=per_head), want)


def test_the_direct_score_has_the_gradient_of_its_definition(exact, monkeypatch):
    monkeypatch.setattr("weft.methods.str_direct.ROOM", 2 * 24 * 7)  # seven rows at a time
    source, target = call_of(exact, latents()), call_of(exact, latents(seed=1))
    gradients = []
    for brute in (True, False):
        q, k = (x.detach().clone().requires_grad_() for x in (target.q, target.k))
        call = type(target)(**{**vars(target), "q": q, "k": k})
        if brute:
            a, b = (
                x[..., 16:].mean(0).unflatten(-1, (3, 24)).unflatten(0, (3, 24))
                for x in (attention_of(source), attention_of(call))
            )
            rows, near = [], [(i, j) for i in range(3) for j in range(3) if abs(i - j) == 1]
            for one, other in ((a, b), (a, a), (b, b)):
                both = (
                    torch.stack([sum(x[i, :, j] + x[j, :, i].T for i, j in near if i == at) for at in range(3)])
                    for x in (one, other)
                )
                rows.append(math.prod(both).sum(-1))
            statistics = torch.stack(rows, -1)
        else:
            statistics = direct_rows(source, call)
        gradients.append(torch.autograd.grad(reduce_rows([statistics], "row_sum"), (q, k)))
    for got, want in zip(gradients[1], gradients[0]):
        assert want.abs().max() > 0
        assert_gradient(got, want)


def test_the_factorised_maps_are_softmax_within_a_frame_and_over_a_place(exact):
    call = call_of(exact, latents())
    q, k, maps = score_inputs((call, call), per_head=True)
    full_q, full_k = (x[0, 0, :, 16:].unflatten(1, (3, 24)) for x in (call.q, call.k))  # [H, F, N, D]
    assert q.shape == k.shape == (3, 2, 24, 16)
    for f in range(3):
        assert_close(q[f], full_q[:, f])
        assert_close(k[f], full_k[:, f])
    for p in (0, 7, 23):
        for i in range(3):
            logits = torch.stack([(full_q[:, i, p] * full_k[:, j, p]).sum(-1) for j in range(3)], -1) * call.scale
            assert_close(maps[:, p, i], logits.softmax(-1))


def test_places_turn_the_one_and_cancel_in_the_other(exact):
    """In maps within a frame the turn in time cancels, in maps over time that in space."""
    from diffusers.models.embeddings import apply_rotary_emb

    turns = exact.denoiser._turns(3, 8, 12)
    q, k = torch.randn(2, 1, 2, 3 * 24, 16, dtype=torch.float64)

    def maps(turned):
        both = [apply_rotary_emb(x, tuple(t.double() for t in turned))[0].unflatten(1, (3, 24)) for x in (q, k)]
        spatial = (both[0] @ both[1].transpose(-1, -2)).softmax(-1)
        a, b = (x.transpose(1, 2) for x in both)
        return spatial, (a @ b.transpose(-1, -2)).softmax(-1)

    def without(axis):
        rows = [t.unflatten(0, (3, 24)) for t in turns]
        rows = [r[:1].expand(3, -1, -1) if axis == "time" else r[:, :1].expand(-1, 24, -1) for r in rows]
        return tuple(r.flatten(0, 1) for r in rows)

    spatial, temporal = maps(turns)
    no_time, no_space = maps(without("time")), maps(without("space"))
    assert_close(no_time[0], spatial, torch.float32)
    assert_close(no_space[1], temporal, torch.float32)
    assert not torch.allclose(no_time[1], temporal, atol=1e-2)
    assert not torch.allclose(no_space[0], spatial, atol=1e-2)


def read_gradient(backbone, recompute):
    """(gradient of what two layers project, bytes that autograd kept for it)."""
    z, kept = latents().double().requires_grad_(), {}
    e = Evaluation(z[None], 321.0, (backbone.text.embed("a red square"),), (SOURCE,), recompute=recompute)
    layers = {"transformer_blocks.1.attn1", "transformer_blocks.3.attn1"}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        calls = read_calls(backbone.denoiser.predict, e, PLAIN, SOURCE, layers)
        loss = sum((call.q * call.k.sin()).square().mean() for call in calls.values())
        weights = {p.untyped_storage().data_ptr() for p in backbone.denoiser.network.parameters()}
        size = sum(n for at, n in kept.items() if at not in weights)
    return torch.autograd.grad(loss, z)[0], size


def test_blocks_evaluated_again_give_the_same_gradient_and_keep_less(exact):
    (want, much), (got, little) = read_gradient(exact, False), read_gradient(exact, True)
    assert want.abs().max() > 0
    assert_close(got, want)
    assert little < much / 2


@pytest.mark.parametrize(
    "control",
    [
        STRLatentOptimizer(strength=0.5),
        STRLatentOptimizer(strength=0.5, joint="direct", levels="all", heads="per_head"),
        STRLatentOptimizer(strength=0.5, score="maps"),
        LatentBlend(torch.ones(FRAMES, HEIGHT, WIDTH).tril()),
    ],
    ids=["str", "direct", "maps", "blend"],
)
def test_whole_edits(backbone, control):
    z = backbone.codec.encode(clip())
    trajectory = invert(backbone, z, backbone.text.embed("a red square"), steps=3)
    target = backbone.text.embed("a blue cross")
    plain = edit(backbone, trajectory, target, guidance=6.0)
    edited = edit(backbone, trajectory, target, plan=PLAIN.then(control), guidance=6.0)
    assert edited.shape == z.shape
    assert edited.isfinite().all()
    assert not torch.equal(edited, plain)
    assert backbone.codec.decode(edited).shape == (FRAMES, HEIGHT, WIDTH, 3)


def test_coupled_edit_and_the_pictures_on_the_way(backbone):
    from weft.engine.inversion import source_of

    z, prompt = backbone.codec.encode(clip()), backbone.text.embed("a red square")
    source = source_of(backbone, z, prompt, 4)
    edited = edit(backbone, source, backbone.text.embed("a blue cross"), solver=CoupledFlow())
    assert edited.isfinite().all()
    pictures = LatentPreview(backbone, source)(source.at(0))
    assert pictures.shape == (3, 8, 12, 3)
    heat = look(backbone, invert(backbone, z, prompt, steps=2), (0.5, 0.5)).painted
    assert heat.shape == (FRAMES, HEIGHT, WIDTH, 3)


def test_memory_that_is_too_small_for_the_graph_is_not_tried(exact, monkeypatch):
    seen, predict = [], type(exact.denoiser).predict

    def watched(self, evaluation, plan=PLAIN):
        if torch.is_grad_enabled():
            seen.append(evaluation.recompute)
        return predict(self, evaluation, plan)

    monkeypatch.setattr(type(exact.denoiser), "predict", watched)
    trajectory = invert(exact, exact.codec.encode(clip()), exact.text.embed("a red square"), steps=2)
    for free in (0, 2**50):
        monkeypatch.setattr(exact.denoiser.memory, "free", lambda free=free: free)
        edit(exact, trajectory, exact.text.embed("a blue cross"), plan=PLAIN.then(STRLatentOptimizer()))
    assert seen == [True, True, False, False]


# ---- the VAE, the text, the folder ----------------------------------------------------------------------------------


def test_the_codec_is_the_vae(backbone):
    frames = clip()
    z = backbone.codec.encode(frames)
    assert z.shape == (1, 4, 3, 8, 12)
    assert backbone.codec.layout == backbone.denoiser.layout == Layout(8, 4, True)
    vae = backbone.codec.vae
    with torch.no_grad():
        assert_close(z, vae.encode(frames.movedim(-1, 0)[None] * 2 - 1).latent_dist.mode())
        want = (vae.decode(z).sample / 2 + 0.5).clamp(0, 1)[0].movedim(0, -1)
    assert_close(backbone.codec.decode(z), want)
    for frames in (9, 17):  # as many come out as went in
        assert backbone.codec.decode(backbone.codec.encode(clip(frames=frames))).shape == clip(frames=frames).shape
    assert_close(backbone.codec.scale(z), 0.7 * z[0].movedim(0, 1))
    assert_close(backbone.codec.unscale(backbone.codec.scale(z)), z)


def test_a_vae_that_runs_out_of_memory_goes_on_in_tiles(backbone, monkeypatch, caplog):
    vae, whole = backbone.codec.vae, backbone.codec.encode(clip())
    encode = vae.encode

    def little_memory(x):
        if not vae.use_tiling:
            raise torch.OutOfMemoryError("full")
        return encode(x)

    monkeypatch.setattr(vae, "encode", little_memory)
    assert_close(backbone.codec.encode(clip()), whole)  # so small a clip is one tile
    assert "goes on in tiles" in caplog.text
    assert not vae.use_tiling


@pytest.mark.parametrize(
    ("frames", "match"),
    [
        (torch.zeros(13, HEIGHT, WIDTH, 3), r"wants 8k \+ 1 frames, got 13: cut the clip to 9, or add frames up to 17"),
        (torch.zeros(1, HEIGHT, WIDTH, 3), "want a clip of at least 9 frames, got 1"),
        (torch.zeros(9, 72, WIDTH, 3), "divisible by 16: scale or crop to 96x64"),
        (torch.zeros(9, HEIGHT, WIDTH), r"want frames \[F, H, W, 3\]"),
        (torch.full((9, HEIGHT, WIDTH, 3), float("nan")), "the frames hold NaN"),
    ],
)
def test_clips_that_cannot_be_encoded_are_refused(backbone, frames, match):
    with pytest.raises(ValueError, match=match):
        backbone.codec.encode(frames)


@pytest.mark.parametrize("shape", [(3, 4, 8, 12), (1, 16, 3, 8, 12), (2, 4, 3, 8, 12)])
def test_latents_of_another_kind_are_refused(backbone, shape):
    with pytest.raises(ValueError, match=r"wants latents \[1, 4, T, h, w\], got"):
        backbone.codec.decode(torch.zeros(shape))


def test_a_text_is_padded_and_ended_as_t5_was_trained(backbone):
    pieces = backbone.text.tokenizer.pieces
    prompt = backbone.text.embed("a red square")
    ids = [*pieces.encode("a red square"), 1]
    with torch.no_grad():
        want = backbone.text.encoder(torch.tensor([ids + [0] * (16 - len(ids))])).last_hidden_state
    assert_close(prompt.cond["embedding"], want)
    assert "".join(prompt.tokens).strip() == "a red square"
    assert backbone.text.embed("a red square " * 30).cond["embedding"].shape == (1, 16, 24)


def test_t5_is_not_run_in_float16(folders):
    half = load_backbone(folders["5b"], dtype="float16", memory=PlainMemory("cpu"))
    assert {p.dtype for p in half.text.encoder.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in half.denoiser.network.parameters()} == {torch.float16}


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"patch_size_t": 2, "patch_bias": False}, "is a CogVideoX 1.5, which is not supported"),
        ({"in_channels": 8}, "takes 8 channels and the latents have 4: image-to-video and inpainting models are not"),
        ({"text_embed_dim": 32}, "takes texts 32 wide and its text encoder gives 24"),
    ],
)  # fmt: skip
def test_relatives_are_refused(folders, tmp_path, config, match):
    folder = shutil.copytree(folders["5b"], tmp_path / "copy")
    told = json.loads((folder / "transformer" / "config.json").read_text())
    shutil.rmtree(folder / "transformer")
    network = diffusers.CogVideoXTransformer3DModel.from_config({**told, **config})
    network.save_pretrained(folder / "transformer")
    with pytest.raises(ValueError, match=match):
        load_backbone(folder, memory=PlainMemory("cpu"))


def test_memory_is_reckoned_by_tokens_and_layers(backbone):
    one = backbone.denoiser.bytes(1, 3, (8, 12))
    width, tokens = 32, 16 + 3 * 24
    assert one == tokens * width * 24 * 4
    assert backbone.denoiser.bytes(2, 3, (8, 12)) == 2 * one
    assert math.isclose(backbone.denoiser.bytes(1, 3, (8, 12), grad=True) / one, (24 + 34 * 4) / 24)
