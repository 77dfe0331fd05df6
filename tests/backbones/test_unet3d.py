import pytest
import torch

from weft.backbones.diffusers import parts
from weft.backbones.diffusers.loading import load_backbone
from weft.backbones.diffusers.text import prompt_of
from weft.backbones.diffusers.unet3d import UNet3D
from weft.backbones.memory import PlainMemory
from weft.engine.call import Evaluation
from weft.engine.plan import PLAIN
from weft.engine.words import NEGATIVE, POSITIVE, Layout, Site
from weft.tests.numerics import assert_close
from weft.tests.tiny import COARSE_ONLY, make_folder, make_latents

SELF = "transformer_blocks.0.attn1"


@pytest.fixture(scope="module")
def coarse(tmp_path_factory):
    folder = make_folder(tmp_path_factory.mktemp("models") / "coarse", blocks=COARSE_ONLY)
    return load_backbone(folder, memory=PlainMemory("cpu"))


@pytest.fixture
def zeroscope(monkeypatch):
    """The full-size network of Zeroscope and ModelScope, without its weights."""
    from diffusers import UNet3DConditionModel

    monkeypatch.setattr(parts, "fingerprint", lambda *modules: "none")
    with torch.device("meta"):
        network = UNet3DConditionModel()
    return UNet3D("zeroscope", network, Layout(8), {}, PlainMemory("cpu"))


def names(denoiser, kind):
    return [s.layer for s in denoiser.sites if s.kind == kind]


def test_sites_of_attention_at_the_middle_level_only(coarse):
    blocks = {s.block: s.level for s in coarse.denoiser.sites}
    assert blocks == {"transformer_in": 0, "down.1.0": 1, "mid.0.0": 2, "up.1.0": 1, "up.1.1": 1}
    assert [s.kind for s in coarse.denoiser.sites] == ["temporal"] * 2 + [
        "spatial",
        "cross",
        "temporal",
        "temporal",
    ] * 4
    assert coarse.denoiser.sites[2] == Site(
        f"down_blocks.1.attentions.0.{SELF}", "spatial", "down.1.0", 1, 2, "encoder"
    )


def test_sites_of_a_full_size_model_are_those_of_the_paper_notes(zeroscope):
    places = [f"down_blocks.{i}.{{}}.{j}" for i in range(3) for j in range(2)] + ["mid_block.{}.0"]
    places += [f"up_blocks.{i}.{{}}.{j}" for i in range(1, 4) for j in range(3)]
    assert names(zeroscope, "spatial") == [f"{p.format('attentions')}.{SELF}" for p in places]
    assert names(zeroscope, "cross") == [f"{p.format('attentions')}.transformer_blocks.0.attn2" for p in places]
    temporal = names(zeroscope, "temporal")
    assert temporal[:2] == [f"transformer_in.transformer_blocks.0.attn{n}" for n in (1, 2)]
    assert temporal[2::2] == [f"{p.format('temp_attentions')}.{SELF}" for p in places]
    levels = {s.layer: s.level for s in zeroscope.sites}
    for place in places:
        half, index = place.split(".")[:2]
        want = {"down_blocks": index, "mid_block": 3, "up_blocks": 3 - int(index) if index.isdigit() else 0}[half]
        assert levels[f"{place.format('attentions')}.{SELF}"] == int(want)
        assert levels[f"{place.format('temp_attentions')}.{SELF}"] == int(want)
    assert len(zeroscope.sites) == 2 + 4 * 16
    stages = [b for b in zeroscope.blocks if b.kind == "stage"]
    assert [(b.name, b.level) for b in stages] == [(f"up_blocks.{i}", max(2 - i, 0)) for i in range(4)]
    residual = [b for b in zeroscope.blocks if b.kind == "residual"]
    assert [(b.stage, b.level) for b in residual] == [(i, 3 - i) for i in range(4) for _ in range(3)]


def test_blocks_of_a_full_size_model_pair_spatial_with_temporal(zeroscope):
    pairs = {}
    for site in zeroscope.sites:
        pairs.setdefault(site.block, []).append(site.kind)
    assert pairs.pop("transformer_in") == ["temporal", "temporal"]
    assert set(map(tuple, pairs.values())) == {("spatial", "cross", "temporal", "temporal")}


def test_a_network_of_another_kind_is_refused(zeroscope):
    zeroscope.network.extra = torch.nn.ModuleDict({"attn1": torch.nn.Identity()})
    with pytest.raises(
        ValueError, match=r"unknown attention layer 'extra\.attn1': this UNet3DConditionModel is not supported"
    ):
        _ = zeroscope.sites


@pytest.mark.parametrize(("frames", "size"), [(3, (6, 10)), (5, (5, 9)), (2, (1, 3))])
def test_the_network_is_given_clips_labels_and_texts_as_diffusers_takes_them(tiny64, frames, size):
    z = torch.stack([make_latents(frames, size, seed) for seed in (0, 1)])
    prompts = tiny64.text.embed("a red square"), tiny64.text.embed("a blue cross")
    with torch.no_grad():
        got = tiny64.denoiser.predict(Evaluation(z, 321.0, prompts, (NEGATIVE, POSITIVE)))
        for row in (0, 1):
            out = tiny64.denoiser.network(
                z[row : row + 1].double().movedim(2, 1), 321.0, prompts[row].cond["embedding"].double()
            ).sample
            assert_close(got[row], out.movedim(1, 2)[0].float())
    assert got.dtype == torch.float32


def test_predict_is_differentiable_in_the_latents_alone(tiny):
    z = make_latents()[None].requires_grad_()
    tiny.denoiser.predict(Evaluation(z, 321, (tiny.text.embed("a red square"),), (POSITIVE,))).square().sum().backward()
    assert z.grad.isfinite().all()
    assert (z.grad.abs().amax((0, 2, 3, 4)) > 0).all()
    assert all(p.grad is None for p in tiny.denoiser.network.parameters())


def test_encode_and_decode_are_the_vae_frame_by_frame(tiny):
    frames = torch.rand(11, 12, 20, 3)  # more than go through at once
    latents = tiny.codec.encode(frames)
    assert latents.shape == (11, 4, 6, 10)
    assert tiny.codec.layout == tiny.denoiser.layout == Layout(2)
    with torch.no_grad():
        for i in (0, 7, 8, 10):
            one = tiny.codec.vae.encode(frames[i : i + 1].movedim(-1, 1) * 2 - 1).latent_dist.mode()
            assert_close(latents[i : i + 1], one)
        back = tiny.codec.decode(latents)
        want = (tiny.codec.vae.decode(latents[8:9]).sample / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    assert_close(back[8:9], want)
    assert back.shape == frames.shape
    assert back.is_contiguous()
    assert 0 <= back.min() < back.max() <= 1


def test_cancel_is_asked_between_batches_of_frames(tiny_folder):
    asked = []
    backbone = load_backbone(tiny_folder, memory=PlainMemory("cpu"), check=lambda: asked.append(1))
    latents = backbone.codec.encode(torch.rand(17, 4, 4, 3))
    assert len(asked) == 3
    backbone.codec.decode(latents)
    assert len(asked) == 6


def test_latents_on_a_wire_are_unscaled(tiny):
    z = make_latents()
    assert_close(tiny.codec.scale(z), 0.5 * z)
    assert_close(tiny.codec.unscale(tiny.codec.scale(z)), z)


def test_a_prompt_is_the_padded_text_through_the_encoder(tiny):
    prompt = tiny.text.embed("a red square")
    tokens = tiny.text.tokenizer("a red square", padding="max_length", max_length=16, return_tensors="pt").input_ids
    with torch.no_grad():
        assert_close(prompt.cond["embedding"], tiny.text.encoder(tokens).last_hidden_state)
    assert (prompt.text, prompt.encoder, prompt.frames) == ("a red square", tiny.text.fingerprint, 1)
    assert prompt.cond["embedding"].shape == (1, 16, 64)
    assert tiny.text.embed("a red square " * 30).cond["embedding"].shape == (1, 16, 64)  # cut, as Stable Diffusion does
    assert not torch.equal(tiny.text.embed("a blue square").cond["embedding"], prompt.cond["embedding"])
    assert tiny.text.embed("").cond["embedding"].isfinite().all()


def test_the_schedule_is_that_of_the_models_config(tiny):
    schedule = tiny.denoiser.schedule(50)
    assert schedule.timesteps == tuple(map(float, range(1, 1000, 20)))
    assert schedule.prediction == "epsilon"


@pytest.mark.parametrize(
    ("frames", "match"),
    [
        (torch.zeros(12, 20, 3), r"want frames \[F, H, W, 3\], got \[12, 20, 3\]"),
        (torch.zeros(3, 12, 20, 4), r"want frames \[F, H, W, 3\], got \[3, 12, 20, 4\]"),
        (torch.zeros(1, 12, 20, 3), "want a clip of at least 2 frames, got 1: is this a picture, or an unreadable"),
        (torch.zeros(0, 12, 20, 3), "want a clip of at least 2 frames, got 0"),
        (torch.zeros(3, 13, 21, 3), "frames are 21x13, .* divisible by 2: scale or crop to 20x12"),
        (torch.full((3, 12, 20, 3), float("nan")), "the frames hold NaN or infinity"),
    ],
)
def test_frames_that_cannot_be_encoded_are_refused(tiny, frames, match):
    with pytest.raises(ValueError, match=match):
        tiny.codec.encode(frames)


@pytest.mark.parametrize(
    ("latents", "match"),
    [
        (torch.zeros(3, 8, 6, 10), r"'tiny' wants latents \[F, 4, h, w\], got \[3, 8, 6, 10\]: encode the frames"),
        (torch.zeros(4, 6, 10), r"'tiny' wants latents \[F, 4, h, w\], got \[4, 6, 10\]"),
        (torch.zeros(1, 4, 6, 10), "want a clip of at least 2 frames, got 1"),
        (torch.full((3, 4, 6, 10), float("inf")), "NaN or infinity, which would decode to black frames"),
    ],
)
def test_latents_that_cannot_be_decoded_are_refused(tiny, latents, match):
    with pytest.raises(ValueError, match=match):
        tiny.codec.decode(latents)


def test_room_is_asked_for_what_a_session_reserves(tiny, monkeypatch):
    asked, memory = [], tiny.denoiser.memory
    plain = memory.resident
    monkeypatch.setattr(
        memory, "resident", lambda m, activations=0: asked.append((m, activations)) or plain(m, activations)
    )
    prompt, z = tiny.text.embed("a red square"), make_latents()
    e = Evaluation(z[None], 321.0, (prompt,), (POSITIVE,))
    schedule = tiny.denoiser.schedule(2)
    with torch.no_grad():
        got = tiny.denoiser.session([prompt], z, schedule, lambda predict: predict(e, PLAIN), reserve=12345)
        assert torch.equal(got, tiny.denoiser.predict(e))
    tiny.codec.decode(tiny.codec.encode(torch.rand(2, 4, 4, 3)))
    vae = tiny.codec.vae
    a_frame = parts.encoding_bytes(vae, 4, 4), parts.decoding_bytes(vae, 2, 2)
    assert asked == [(tiny.text.encoder, 0), (tiny.denoiser.network, 12345), *((vae, bytes) for bytes in a_frame)]


def test_a_session_hands_on_what_its_body_returns_or_raises(tiny):
    def fail(predict):
        raise KeyboardInterrupt

    arguments = [], make_latents(), tiny.denoiser.schedule(2)
    assert tiny.denoiser.session(*arguments, lambda predict: 7) == 7
    with pytest.raises(KeyboardInterrupt):
        tiny.denoiser.session(*arguments, fail)


def test_a_prompt_of_each_frame_is_refused(tiny):
    prompt = prompt_of(torch.zeros(3, 16, 64), "each its own", tiny.text.fingerprint)
    with pytest.raises(ValueError, match="'tiny' takes one prompt for all frames, got 3"):
        tiny.denoiser.predict(Evaluation(make_latents()[None], 321.0, (prompt,), (POSITIVE,)))
