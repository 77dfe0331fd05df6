"""AnimateDiff: sites, sizes and outputs are those of diffusers' class, however the model comes."""

import re

import pytest
import torch
from safetensors.torch import save_file

from weft.backbones.diffusers import parts
from weft.backbones.diffusers.loading import load_backbone
from weft.backbones.diffusers.model_folder import SAFE_TORCH
from weft.backbones.diffusers.motion import load_animatediff
from weft.backbones.diffusers.text import prompt_of
from weft.backbones.diffusers.unet_motion import UNetMotion, _repeats_text
from weft.backbones.memory import PlainMemory
from weft.engine.call import Evaluation
from weft.engine.edit import edit
from weft.engine.inversion import invert
from weft.engine.plan import PLAIN
from weft.engine.probe import read_calls
from weft.engine.words import NEGATIVE, POSITIVE, SOURCE, Layout
from weft.methods.injection import FeatureInjection
from weft.methods.latent_blend import LatentBlend
from weft.methods.spatio_temporal import SpatioTemporalAttention
from weft.methods.stem import STEMAttention
from weft.methods.str_inputs import site_pairs
from weft.methods.str_match import STRLatentOptimizer
from weft.tests.checkpoints import VERSIONS, WIDTHS, adapter_of, make_checkpoint, make_parts, released
from weft.tests.numerics import assert_close
from weft.tests.tiny import make_folder, make_latents
from weft.toyworld.text import make_tokenizer

PICKLES_ARE_SAFE = tuple(int(n) for n in torch.__version__.split(".")[:2]) >= SAFE_TORCH


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("motion") / "animatediff", kind="motion")


@pytest.fixture(scope="module")
def backbone(folder):
    return load_backbone(folder, dtype="float32", memory=PlainMemory("cpu"))


@pytest.fixture
def words(tmp_path):
    make_tokenizer(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def tokenizer(words):
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(words)


@pytest.fixture
def checkpoint(tmp_path, tokenizer):
    return make_checkpoint(tmp_path / "sd.safetensors", tokenizer)


def load(checkpoint, motion, words, **options):
    return load_animatediff(checkpoint, motion, memory=PlainMemory("cpu"), tokenizer=words, **options)


def full_size(version, monkeypatch):
    from diffusers import UNetMotionModel

    monkeypatch.setattr(parts, "fingerprint", lambda *modules: "none")
    longest, middle = VERSIONS[version]
    with torch.device("meta"):
        network = UNetMotionModel(cross_attention_dim=768, motion_max_seq_length=longest, use_motion_mid_block=middle)
    return UNetMotion("animatediff", network, Layout(8), {}, PlainMemory("cpu"))


@pytest.mark.parametrize("version", VERSIONS)
def test_sites_of_a_full_size_model_are_those_of_the_paper_notes(version, monkeypatch):
    denoiser = full_size(version, monkeypatch)
    middle = VERSIONS[version][1]
    places = [f"down_blocks.{i}.{{}}.{j}" for i in range(3) for j in range(2)] + ["mid_block.{}.0"]
    places += [f"up_blocks.{i}.{{}}.{j}" for i in range(1, 4) for j in range(3)]
    named = {kind: [s.layer for s in denoiser.sites if s.kind == kind] for kind in ("spatial", "cross", "temporal")}
    assert named["spatial"] == [f"{p.format('attentions')}.transformer_blocks.0.attn1" for p in places]
    assert named["cross"] == [f"{p.format('attentions')}.transformer_blocks.0.attn2" for p in places]
    alone = [f"down_blocks.3.motion_modules.{j}" for j in range(2)]
    more = [f"up_blocks.0.motion_modules.{j}" for j in range(3)]
    modules = [p.format("motion_modules") for p in places if middle or "mid" not in p]
    modules = modules[:6] + alone + modules[6 : 6 + middle] + more + modules[6 + middle :]
    assert named["temporal"] == [f"{m}.transformer_blocks.0.attn{n}" for m in modules for n in (1, 2)]
    paired = site_pairs(denoiser, "all")
    assert len(paired) == 15 + middle
    assert all(a.layer.replace("attentions", "motion_modules") == b.layer for a, b in paired)
    assert len(site_pairs(denoiser)) == 10 + middle
    assert {s.place for s in denoiser.sites if s.block.startswith("up.0")} == {None}
    assert denoiser.most_frames(denoiser.network) == VERSIONS[version][0]
    heads = {denoiser.network.get_submodule(s.layer).heads for s in denoiser.sites}
    assert heads == {8}


@pytest.mark.parametrize(("frames", "size"), [(3, (6, 10)), (5, (5, 9))])
def test_the_network_is_given_clips_labels_and_texts_as_diffusers_takes_them(folder, frames, size):
    backbone = load_backbone(folder, dtype="float32", memory=PlainMemory("cpu"))
    torch.nn.Module.to(backbone.denoiser.network, torch.float64)
    z = torch.stack([make_latents(frames, size, seed) for seed in (0, 1)])
    prompts = backbone.text.embed("a red square"), backbone.text.embed("a blue cross")
    with torch.no_grad():
        got = backbone.denoiser.predict(Evaluation(z, 321.0, prompts, (NEGATIVE, POSITIVE)))
        for row in (0, 1):
            text = prompts[row].cond["embedding"].double()
            text = text if _repeats_text() else text.repeat_interleave(frames, 0)
            out = backbone.denoiser.network(z[row : row + 1].double().movedim(2, 1), 321.0, text).sample
            assert_close(got[row], out.movedim(1, 2)[0].float())


def test_each_frame_may_have_a_text_of_its_own_where_diffusers_takes_them(backbone):
    texts = [backbone.text.embed(t) for t in ("a red square", "a blue cross", "a red square")]
    own = prompt_of(torch.cat([t.cond["embedding"] for t in texts]), "each its own", backbone.text.fingerprint)
    z = make_latents()[None]
    if _repeats_text():
        with pytest.raises(ValueError, match="the prompt 'each its own' is for 3 frames"):
            backbone.denoiser.predict(Evaluation(z, 321, (own,), (POSITIVE,)))
        return
    with torch.no_grad():
        same, other = (backbone.denoiser.predict(Evaluation(z, 321, (p,), (POSITIVE,))) for p in (texts[0], own))
    assert not torch.allclose(same, other)


def test_calls_at_temporal_sites_are_of_pixels_over_frames(backbone):
    layer = "up_blocks.1.motion_modules.0.transformer_blocks.0.attn1"
    e = Evaluation(make_latents()[None], 321, (backbone.text.embed("a red square"),), (SOURCE,))
    with torch.no_grad():
        call = read_calls(backbone.denoiser.predict, e, PLAIN, SOURCE, {layer})[layer]
    assert call.grid == (3, 3, 5)
    assert call.q.shape == (1, 3 * 5, 2, 3, 8)


METHODS = {
    "plain": None,
    "str": STRLatentOptimizer(strength=0.5),
    "injection": FeatureInjection(),
    "spatio-temporal": SpatioTemporalAttention(),
    "stem": STEMAttention(bases=8),
    "blend": LatentBlend(torch.eye(12, 20)[None]),
}


@pytest.mark.parametrize("method", METHODS)
def test_whole_edits(backbone, method):
    before = {name: id(p) for name, p in backbone.denoiser.network.attn_processors.items()}
    trajectory = invert(backbone, make_latents(), backbone.text.embed("a red square"), steps=2)
    target = backbone.text.embed("a blue cross")
    plan = PLAIN if METHODS[method] is None else PLAIN.then(METHODS[method])
    edited = edit(backbone, trajectory, target, plan=plan, guidance=2.0)
    assert edited.isfinite().all()
    if method != "plain":
        assert not torch.equal(edited, edit(backbone, trajectory, target, guidance=2.0))
    assert {name: id(p) for name, p in backbone.denoiser.network.attn_processors.items()} == before


def test_no_more_frames_than_it_has_positions(backbone):
    most = backbone.denoiser.network.config.motion_max_seq_length
    for refused in (backbone.codec.encode, backbone.codec.scale):
        clip = torch.zeros(most + 1, 12, 20, 3) if refused == backbone.codec.encode else make_latents(most + 1)
        with pytest.raises(ValueError, match=f"knows {most} places in time and takes no longer clips, got {most + 1}"):
            refused(clip)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_motion_module_in_a_file_makes_what_diffusers_makes(tmp_path, checkpoint, words, tokenizer, version):
    from diffusers import UNetMotionModel

    adapter = adapter_of(version)
    save_file(released(adapter), tmp_path / "mm.safetensors")
    torch.save({"state_dict": {f"module.{k}": t for k, t in released(adapter).items()}}, tmp_path / "mm.ckpt")
    adapter.save_pretrained(tmp_path / "folder")
    unet, _, _ = make_parts("sd1", tokenizer)
    want = UNetMotionModel.from_unet2d(unet, adapter).state_dict()
    files = ("mm.safetensors", "folder", *(["mm.ckpt"] if version == "v2" and PICKLES_ARE_SAFE else []))
    for backbone in (load(checkpoint, tmp_path / file, words) for file in files):
        got = backbone.denoiser.network.state_dict()
        assert set(got) == set(want)
        assert all(torch.equal(got[name], want[name]) for name in want)
        assert not any(p.requires_grad for p in backbone.denoiser.network.parameters())
    schedule = backbone.denoiser.schedule(50)
    linear = torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64)
    assert schedule.timesteps == tuple(map(float, range(1, 1000, 20)))
    assert schedule.signal[-1] ** 2 == pytest.approx(torch.cumprod(1 - linear, 0)[981].item(), rel=1e-4)


def test_a_folder_of_stable_diffusion_does_as_well(tmp_path, words):
    folder = make_folder(tmp_path / "sd", kind="image", blocks=("CrossAttnDownBlock3D",) * 2 + ("DownBlock3D",))
    adapter_of("v3").save_pretrained(tmp_path / "motion")
    with pytest.raises(ValueError, match="the motion module 'motion' is not for 'sd': most are for Stable Diffusion"):
        load(folder, tmp_path / "motion", words)
    motion = make_folder(tmp_path / "both", kind="motion")
    with pytest.raises(ValueError, match="'both' is a video model already"):
        load(motion, tmp_path / "motion", words)


def lora_of(style, layers, rank=2):
    """(tensors of a motion LoRA as one of several programs names them, {layer: what it adds})."""
    tensors, added, draw = {}, {}, torch.Generator().manual_seed(4)
    for layer, width in layers.items():
        down, up = (torch.randn(*s, generator=draw) for s in ((rank, width), (width, rank)))
        added[layer] = up @ down
        base, to = layer.replace("to_out.0", "to_out").rsplit(".", 1)
        if style == "released":
            base = re.sub(r"(motion_modules\.\d+)", r"\1.temporal_transformer", base).replace(
                "attn1", "attention_blocks.0"
            )
            ends = f"{base}.processor.{to}_lora.down.weight", f"{base}.processor.{to}_lora.up.weight"
        elif style == "peft":
            ends = f"unet.{layer}.lora_A.weight", f"unet.{layer}.lora_B.weight"
        else:
            ends = f"unet.{base}.{to}.lora.down.weight", f"unet.{base}.{to}.lora.up.weight"
        tensors |= dict(zip(ends, (down, up)))
    return tensors, added


@pytest.mark.parametrize("style", ["released", "peft", "diffusers"])
def test_a_motion_lora_is_added_to_the_weights(tmp_path, checkpoint, words, style):
    adapter = adapter_of("v2")
    save_file(released(adapter), tmp_path / "mm.safetensors")
    at = "down_blocks.0.motion_modules.1.transformer_blocks.0.attn1"
    layers = {f"{at}.{to}": WIDTHS[0] for to in ("to_q", "to_k", "to_v", "to_out.0")}
    tensors, added = lora_of(style, layers)
    save_file(tensors, tmp_path / "pan.safetensors")
    plain = load(checkpoint, tmp_path / "mm.safetensors", words)
    moved = load(checkpoint, tmp_path / "mm.safetensors", words, loras=[(tmp_path / "pan.safetensors", 0.75)])
    before, after = (b.denoiser.network.state_dict() for b in (plain, moved))
    assert set(before) == set(after)
    for name in before:
        layer = name.removesuffix(".weight")
        want = before[name] + 0.75 * added[layer] if layer in added else before[name]
        assert_close(after[name], want)
    assert plain.denoiser.fingerprint != moved.denoiser.fingerprint
    assert [s.layer for s in plain.denoiser.sites] == [s.layer for s in moved.denoiser.sites]


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"conv_in.weight": torch.ones(2)}, "'x.safetensors' is not a motion LoRA"),
        (
            {f"unet.down_blocks.7.motion_modules.0.to_q.lora.{s}.weight": torch.ones(2, 2) for s in ("down", "up")},
            "'x.safetensors' is not for this motion module: there is no layer down_blocks.7",
        ),
    ],
)  # fmt: skip
def test_a_lora_of_something_else_is_refused(tmp_path, checkpoint, words, tensors, match):
    save_file(released(adapter_of("v3")), tmp_path / "mm.safetensors")
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=match):
        load(checkpoint, tmp_path / "mm.safetensors", words, loras=[(tmp_path / "x.safetensors", 1.0)])


def test_a_motion_module_of_something_else_is_refused(tmp_path, checkpoint, words, tokenizer):
    file = tmp_path / "mm.safetensors"
    save_file({"conv_in.weight": torch.ones(2)}, file)
    with pytest.raises(ValueError, match=r"'mm\.safetensors' is not a motion module of AnimateDiff: it has no down_"):
        load(checkpoint, file, words)
    tensors = released(adapter_of("v3"))
    tensors.pop(max(k for k in tensors if "ff." in k))
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"is not a motion module of AnimateDiff v1, v2 or v3: it differs at .*ff\."):
        load(checkpoint, file, words)
    save_file(released(adapter_of("v3")), file)
    with pytest.raises(ValueError, match=r"'ip2p.safetensors' takes 8 channels: motion modules want a text-to-image"):
        load(make_checkpoint(tmp_path / "ip2p.safetensors", tokenizer, channels=8), file, words)
    with pytest.raises(ValueError, match=r"no file 'gone.ckpt' in '"):
        load(checkpoint, tmp_path / "gone.ckpt", words)


def test_a_pickle_that_holds_more_than_tensors_is_not_run(tmp_path, checkpoint, words):
    class Code:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"x": Code()}, tmp_path / "mm.ckpt")
    with pytest.raises(ValueError, match=r"'mm.ckpt' is (truncated, or )?a pickle"):
        load(checkpoint, tmp_path / "mm.ckpt", words)
    assert not (tmp_path / "ran").exists()
