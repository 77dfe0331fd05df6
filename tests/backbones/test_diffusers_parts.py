import json
import logging
import time

import pytest
import torch
from torch import nn

from weft.backbones.diffusers import parts
from weft.backbones.diffusers.loading import load_backbone
from weft.backbones.diffusers.parts import fingerprint
from weft.backbones.diffusers.text import prompt_of
from weft.backbones.diffusers.tokens import embed_text, token_texts
from weft.backbones.memory import PlainMemory
from weft.benchmarks.measure import peak_bytes
from weft.methods.words import words_of
from weft.tests.numerics import CLOSE, assert_close


def module(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(50, 70), nn.BatchNorm1d(70))


def test_a_fingerprint_is_the_weights_own():
    assert fingerprint(module()) == fingerprint(module())
    assert len(fingerprint(module())) == 12
    assert fingerprint(module(1)) != fingerprint(module())
    assert fingerprint(module(), module(1)) != fingerprint(module(1), module())


@pytest.mark.parametrize("place", [(0, 0), (13, 37), (69, 49)])
def test_a_single_value_changes_the_fingerprint(place):
    changed = module()
    with torch.no_grad():
        changed[0].weight[place] += 1e-3
    assert fingerprint(changed) != fingerprint(module())


def test_swapped_values_buffers_and_shapes_change_the_fingerprint():
    swapped, buffer, shape = module(), module(), module()
    with torch.no_grad():
        swapped[0].weight[:2] = swapped[0].weight[[1, 0]]
        buffer[1].running_var[3] = 2
        shape[0].weight = nn.Parameter(shape[0].weight.view(50, 70))
    assert len({fingerprint(m) for m in (module(), swapped, buffer, shape)}) == 4


def test_half_precision_weights_are_the_same_model_in_float32():
    half = module().half()
    assert fingerprint(half) == fingerprint(module().half().float())
    assert fingerprint(half) != fingerprint(module())


def test_a_level_around_all_names_is_no_other_model():
    """As CLIPTextModel had one until transformers 5.6."""
    wrapped, single = nn.Module(), nn.Module()
    wrapped.text_model = module()
    assert fingerprint(wrapped) == fingerprint(module())
    single.text_model = nn.Module()
    single.text_model.inner = module()
    assert fingerprint(single) == fingerprint(module())


LARGE = 3 * parts.BLOCKS * parts.BLOCK  # values, more than are read


def large(seed=0):
    network = nn.Module()
    weight = torch.randn(LARGE // 512, 512, generator=torch.Generator().manual_seed(seed)) / 20
    network.weight = nn.Parameter(weight, requires_grad=False)
    network.bias = nn.Parameter(torch.zeros(512), requires_grad=False)
    return network


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.add_(1e-4 * torch.randn(w.shape)),
        lambda w: w.add_(1e-3 * torch.randn(len(w), 1) @ torch.randn(1, w.shape[1])),
        lambda w: w.mul_(1.001),
        lambda w: w.copy_(w.flip(0)),
        lambda w: w[:, :16].add_(1e-3),
        lambda w: w.view(-1)[:1].add_(1e-3),
        lambda w: w.view(-1)[-1:].add_(1e-3),
    ],
    ids=["fine-tune", "merged LoRA of rank 1", "scaled", "turned over", "a few columns", "first value", "last value"],
)
def test_whatever_changes_much_of_a_large_tensor_changes_the_fingerprint(change):
    changed = large()
    change(changed.weight.data)
    assert fingerprint(changed) != fingerprint(large())


def test_large_tensors_are_sampled_and_small_ones_read_whole():
    """14 billion values, all in one place of memory: to read them all takes half a minute."""
    network, start = nn.Module(), time.monotonic()
    network.register_buffer("weights", torch.zeros(1).expand(14_000_000_000))
    fingerprint(network)
    assert time.monotonic() - start < 5
    small = large()
    small.bias[255] += 1e-6
    assert fingerprint(small) != fingerprint(large())


class Encoder(nn.Module):
    def __init__(self, use_attention_mask):
        super().__init__()
        self.config = type("Config", (), {"use_attention_mask": use_attention_mask})()

    def forward(self, ids, attention_mask=None):
        self.mask = attention_mask
        return (ids[..., None].half(),)


@pytest.mark.parametrize("masked", [False, True])
def test_padding_is_attended_unless_the_config_says_otherwise(tiny, masked):
    encoder = Encoder(masked)
    embedding = embed_text(tiny.text.tokenizer, encoder, "a red square", torch.device("cpu"))
    assert embedding.shape == (1, 16, 1)
    assert embedding.dtype == torch.float32
    if masked:
        assert encoder.mask.sum() == 5  # start, three words, end
    else:
        assert encoder.mask is None


def test_tokens_of_a_prompt_spell_it_position_by_position(tiny):
    tokens = token_texts(tiny.text.tokenizer, "A teal square on a zebra")
    assert tokens[:6] == ("", "a ", "teal ", "square ", "on ", "a ")
    assert len(tokens) == tiny.text.tokenizer.model_max_length
    assert "".join(tokens) == "a teal square on a zebra "
    assert tiny.text.embed("A teal square on a zebra").tokens == tokens


def test_a_text_that_is_too_long_is_cut_and_its_end_is_told(tiny, caplog):
    with caplog.at_level(logging.WARNING):
        tiny.text.embed("a red square on a " + "gray " * 8)
        assert not caplog.records
        prompt = tiny.text.embed("red " * 14 + "square circle")
    (line,) = caplog.records
    assert "a prompt of 18 tokens is longer than the 16 that are read, and is cut: 'square circle'" in line.getMessage()
    assert prompt.tokens[1:15] == ("red ",) * 14


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a (red:1.3) square embedding:bad", ["(red:1.3)", "embedding:bad"]),
        ("(a red: 0.5) square", ["(a red: 0.5)"]),
        ("a square (red)", []),
        ("red: a square, 1:2", []),
    ],
)
def test_what_means_something_in_other_nodes_is_told(tiny, caplog, text, told):
    with caplog.at_level(logging.WARNING):
        tiny.text.embed(text)
    lines = [r.getMessage() for r in caplog.records if "read as they stand" in r.getMessage()]
    assert len(lines) == bool(told)
    assert all(mark in lines[0] for mark in told)


@pytest.mark.parametrize("frames", [torch.randint(256, (2, 12, 20, 3)).byte(), 255 * torch.rand(2, 12, 20, 3)])
def test_frames_in_0_to_255_are_not_taken_for_pictures(tiny_image, frames):
    with pytest.raises(ValueError, match=r"want frames .*0\.\.1, got .*divide them by 255"):
        tiny_image.codec.encode(frames)


def test_frames_a_little_out_of_range_are_pictures(tiny_image):
    frames = torch.rand(2, 12, 20, 3) * 1.2 - 0.1
    assert tiny_image.codec.encode(frames).isfinite().all()


def taken(call):
    """Bytes that a call takes at once beside what it returns."""
    sizes = []
    return peak_bytes(lambda: sizes.append(call().nbytes)) - sizes[0]


@pytest.mark.parametrize("way", ["encode", "decode"])
@pytest.mark.parametrize("inference", [False, True], ids=["", "as nodes run"])
def test_the_vae_takes_no_more_memory_for_a_longer_clip(tiny_image, way, inference):
    with torch.inference_mode(inference):
        clip = torch.rand(96, 32, 32, 3) if way == "encode" else torch.randn(96, 4, 16, 16)
    short, long = (taken(lambda n=n: getattr(tiny_image.codec, way)(clip[:n])) for n in (16, 96))
    assert long < 1.01 * short


def test_a_clip_through_the_vae_is_its_frames_through_it_one_by_one(tiny_image):
    frames = torch.rand(11, 12, 20, 3, generator=torch.Generator().manual_seed(0))
    latents = tiny_image.codec.encode(frames)
    assert_close(latents, torch.cat([tiny_image.codec.encode(frame[None]) for frame in frames]))
    decoded = tiny_image.codec.decode(latents)
    assert decoded.is_contiguous()
    assert_close(decoded, torch.cat([tiny_image.codec.decode(z[None]) for z in latents]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_found_in_the_last_frame(tiny_image, value):
    frames, latents = torch.rand(11, 12, 20, 3), torch.randn(11, 4, 6, 10)
    frames[-1, -1, -1, -1] = latents[-1, -1, -1, -1] = value
    with pytest.raises(ValueError, match="frames hold NaN"):
        tiny_image.codec.encode(frames)
    with pytest.raises(ValueError, match="latents hold NaN"):
        tiny_image.codec.decode(latents)


# ---- the memory of the VAE ------------------------------------------------------------------------------------------


@pytest.fixture
def image(tiny_image_folder):
    """An image model to be spoiled."""
    return load_backbone(tiny_image_folder, dtype="float32", memory=PlainMemory("cpu"))


def given(way):
    """What goes in, and the size it is reckoned by."""
    generator = torch.Generator().manual_seed(0)
    shape = (11, 12, 20, 3) if way == "encode" else (11, 4, 6, 10)
    return torch.rand(shape, generator=generator)


def reckoned(vae, way, clip):
    if way == "encode":
        return parts.encoding_bytes(vae, *clip.shape[1:3])
    return parts.decoding_bytes(vae, *clip.shape[2:])


@pytest.mark.parametrize("way", ["encode", "decode"])
@pytest.mark.parametrize(("widths", "groups"), [((8, 8), 4), ((16, 32, 48), 4), ((64, 128, 128), 16)])
def test_the_memory_reckoned_for_a_frame_is_enough_and_not_much_too_much(way, widths, groups):
    from diffusers import AutoencoderKL

    levels = len(widths)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=widths,
        layers_per_block=2,
        norm_num_groups=groups,
    ).requires_grad_(False)
    clip = torch.rand(1, 64, 80, 3) if way == "encode" else torch.rand(1, 4, *(n >> levels - 1 for n in (64, 80)))
    through = getattr(parts, {"encode": "encode_frames", "decode": "decode_latents"}[way])
    peak = peak_bytes(lambda: through(vae, clip, PlainMemory("cpu"), lambda: None))
    assert 1 <= reckoned(vae, way, clip) / peak < 3


@pytest.mark.parametrize("way", ["encode", "decode"])
def test_frames_at_once_are_as_many_as_there_is_memory_for(image, way, monkeypatch):
    clip, seen, asked = given(way), [], []
    want = getattr(image.codec, way)(clip)
    each, resident = reckoned(image.codec.vae, way, clip), image.codec.memory.resident
    monkeypatch.setattr(image.codec.vae, way, watched(getattr(image.codec.vae, way), seen))
    monkeypatch.setattr(image.codec.memory, "resident", lambda m, n=0: asked.append((m, n)) or resident(m, n))
    monkeypatch.setattr(parts, "UNKNOWN", 2 * each)
    for free, sizes in {100: [8, 3], 3.9: [3, 3, 3, 2], 1.1: [1] * 11, 0: [1] * 11, None: [2] * 5 + [1]}.items():
        seen.clear()
        monkeypatch.setattr(image.codec.memory, "free", lambda free=free: None if free is None else int(free * each))
        assert_close(getattr(image.codec, way)(clip), want)
        assert seen == sizes
    assert asked == [(image.codec.vae, each)] * 5


def watched(function, seen, most=100):
    """Keeps how many frames come at a time; out of memory for more than `most`."""

    def run(x, *args, **options):
        if len(x) > most:
            raise torch.OutOfMemoryError("full")
        seen.append(len(x))
        return function(x, *args, **options)

    return run


@pytest.mark.parametrize("way", ["encode", "decode"])
@pytest.mark.parametrize(("most", "sizes"), [(7, [4, 4, 3]), (3, [2, 2, 2, 2, 2, 1]), (1, [1] * 11)])
def test_a_vae_that_runs_out_of_memory_goes_on_with_half_the_frames(image, way, most, sizes, monkeypatch, caplog):
    clip, seen = given(way), []
    want = getattr(image.codec, way)(clip)
    monkeypatch.setattr(image.codec.vae, way, watched(getattr(image.codec.vae, way), seen, most))
    with caplog.at_level(logging.WARNING):
        assert_close(getattr(image.codec, way)(clip), want)
    assert seen == sizes
    assert "out of memory: going on with" in caplog.text
    monkeypatch.setattr(image.codec.vae, way, watched(getattr(image.codec.vae, way), seen, 0))
    with pytest.raises(torch.OutOfMemoryError):
        getattr(image.codec, way)(clip)


def test_sixteen_frames_of_512_fit_beside_the_rest_in_8_gb(monkeypatch):
    """By reckoning: Zeroscope's network and Stable Diffusion 2's text encoder in half precision, the VAE in float32."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
    weights = sum(p.nbytes for p in vae.parameters())
    left = 8e9 - 2 * 1.42e9 - 2 * 0.35e9 - weights
    assert parts.encoding_bytes(vae, 512, 512) < left
    assert parts.decoding_bytes(vae, 64, 64) < left
    half = vae.to(torch.bfloat16)
    assert 3 * parts.decoding_bytes(half, 64, 64) < left


@pytest.mark.parametrize("way", ["encode", "decode"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_vae_in_half_precision_gives_nearly_the_same(image, way, dtype):
    clip = given(way)
    want = getattr(image.codec, way)(clip)
    nn.Module.to(image.codec.vae, dtype)
    got = getattr(image.codec, way)(clip)
    assert got.dtype == torch.float32
    assert image.codec.vae.dtype == dtype
    error = (got - want).square().mean().sqrt() / want.std()
    assert 0 < error < CLOSE[dtype][0]


@pytest.mark.parametrize("way", ["encode", "decode"])
def test_a_vae_that_overflows_goes_on_in_float32_for_that_clip(image, way, caplog):
    clip, dtypes = given(way), []
    nn.Module.to(image.codec.vae, torch.bfloat16).float()
    weights = {n: p.clone() for n, p in image.codec.vae.named_parameters()}
    want = getattr(image.codec, way)(clip)
    nn.Module.to(image.codec.vae, torch.bfloat16)
    last = (image.codec.vae.encoder if way == "encode" else image.codec.vae.decoder).conv_out

    def overflow(layer, given, made):
        dtypes.append(made.dtype)
        return made if made.dtype == torch.float32 or len(dtypes) == 1 else made + torch.inf

    last.register_forward_hook(overflow)
    with caplog.at_level(logging.WARNING):
        got = getattr(image.codec, way)(clip)
    assert dtypes == [torch.bfloat16, torch.bfloat16, torch.float32]  # 8 frames, 3 that overflow, the 3 again
    assert_close(got[8:], want[8:])
    assert got.isfinite().all()
    (line,) = caplog.records
    assert "goes on in float32" in line.getMessage()
    assert image.codec.vae.dtype == torch.bfloat16
    assert all(torch.equal(p.float(), weights[n]) for n, p in image.codec.vae.named_parameters())


def test_half_a_character_is_refused(tiny):
    with pytest.raises(ValueError, match="character 3 of a text is half of one"):
        tiny.text.embed("a \ud83d square")
    tiny.text.embed("a \U0001f642 square")


@pytest.mark.parametrize("text", ["a café", "日本 cat", "naïve ÆØÅ", "кот"])
def test_the_tokens_of_any_letters_spell_them(tmp_path, text):
    """A tokenizer of single bytes, as CLIP's is where it knows no word."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 40, **marks}))
    tokens = token_texts(CLIPTokenizer.from_pretrained(tmp_path, pad_token="<|endoftext|>"), text)
    words = words_of(prompt_of(torch.zeros(1, 40, 1), text, "", tokens))
    assert "".join(word for word, _ in words) == text.lower().replace(" ", "")
    assert [at for _, places in words for at in places] == [i for i, token in enumerate(tokens) if token]
