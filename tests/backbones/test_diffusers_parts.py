import pytest
import torch
from torch import nn

from weft.backbones.diffusers_parts import embed_text, fingerprint, token_texts
from weft.benchmarks.measure import peak_bytes
from weft.tests.numerics import assert_close


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
    embedding = embed_text(tiny.tokenizer, encoder, "a red square", torch.device("cpu"))
    assert embedding.shape == (1, 16, 1)
    assert embedding.dtype == torch.float32
    if masked:
        assert encoder.mask.sum() == 5  # start, three words, end
    else:
        assert encoder.mask is None


def test_tokens_of_a_prompt_spell_it_position_by_position(tiny):
    tokens = token_texts(tiny.tokenizer, "A teal square on a zebra")
    assert tokens[:6] == ("", "a ", "teal ", "square ", "on ", "a ")
    assert len(tokens) == tiny.tokenizer.model_max_length
    assert "".join(tokens) == "a teal square on a zebra "
    assert tiny.text.embed("A teal square on a zebra").tokens == tokens


def taken(call):
    """Bytes that a call takes at once beside what it returns."""
    sizes = []
    return peak_bytes(lambda: sizes.append(call().nbytes)) - sizes[0]


@pytest.mark.parametrize("way", ["encode", "decode"])
@pytest.mark.parametrize("inference", [False, True], ids=["", "as nodes run"])
def test_the_vae_takes_no_more_memory_for_a_longer_clip(tiny_image, way, inference):
    with torch.inference_mode(inference):
        clip = torch.rand(96, 32, 32, 3) if way == "encode" else torch.randn(96, 4, 16, 16)
    short, long = (taken(lambda n=n: getattr(tiny_image, way)(clip[:n])) for n in (16, 96))
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
