"""CogVideoX with the same small weights through diffusers' class and through core's, where core has one.

Of the two networks that turn queries and keys by their places, 5b and 1.5. Core 0.33.0 stretches the places of 5b by
1.875, which diffusers does not, and has another table of places than 2b's; here both stretch by 1.
"""

import comfy.supported_models as models
import pytest
import torch

from weft.backbones.comfy.loading import from_comfy
from weft.backbones.comfy.text import prompt_of
from weft.engine.call import Evaluation
from weft.engine.plan import PLAIN
from weft.engine.words import NEGATIVE, POSITIVE
from weft.tests.native.tiny import COGVIDEOX, StandInVAE, as_patcher, times
from weft.tests.native.unets import in_float64
from weft.tests.numerics import assert_close

pytestmark = pytest.mark.skipif(not hasattr(models, "CogVideoX_T2V"), reason="this core has no CogVideoX")
FRAMES, SIZE, STEPS = 4, (6, 8), 4
NAMES = {
    "time_embedding.linear": "time_embedding_linear",
    "transformer_blocks": "blocks",
    "attn1.to_out.0": "attn_out",
    "attn1.to_": "",
    "attn1.": "",
    "ff.net.0.proj": "ff_proj",
    "ff.net.2": "ff_out",
}
SIZES = {
    "time_embed_dim": 32,
    "text_embed_dim": 24,
    "num_layers": 2,
    "max_text_seq_length": 5,
    "sample_height": SIZE[0],
    "sample_width": SIZE[1],
    "sample_frames": 4 * (FRAMES - 1) + 1,
}


def cores_name(name: str) -> str:
    for theirs, cores in NAMES.items():
        name = name.replace(theirs, cores)
    return name


def cogvideox_twins(frames_in_token: int | None):
    """(diffusers' network, a backbone of core's with the same weights), in float64."""
    import diffusers

    sizes = SIZES | {"use_rotary_positional_embeddings": True, "spatial_interpolation_scale": 1.0}
    sizes |= {"patch_size_t": frames_in_token, "patch_bias": frames_in_token is None}
    torch.manual_seed(0)
    network = diffusers.CogVideoXTransformer3DModel(num_attention_heads=2, attention_head_dim=32, **sizes).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(weight + 0.1 * torch.randn_like(weight))
    kind = models.CogVideoX_T2V({**COGVIDEOX, **sizes})
    kind.set_inference_dtype(torch.float32, None)
    with torch.inference_mode():
        model = kind.get_model({}, "", device="cpu")
        state = {cores_name(name): weight for name, weight in network.state_dict().items()}
        missing, left = model.diffusion_model.load_state_dict(state, strict=False)
        assert not missing, missing
        assert not left, left
    backbone = from_comfy(in_float64(as_patcher(model)), StandInVAE(16, times(4, 8)))
    return network.double(), backbone


def turns(network):
    """As diffusers' pipeline makes them for a clip of the size that the network was trained at."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    told, grid = network.config, tuple(n // network.config.patch_size for n in SIZE)
    if told.patch_size_t is None:
        return get_3d_rotary_pos_embed(told.attention_head_dim, ((0, 0), grid), grid, FRAMES)
    tokens = FRAMES // told.patch_size_t
    return get_3d_rotary_pos_embed(told.attention_head_dim, None, grid, tokens, grid_type="slice", max_size=grid)


@pytest.mark.parametrize("frames_in_token", [None, 2], ids=["5b", "1.5"])
@pytest.mark.parametrize("level", [1, STEPS])
def test_what_is_predicted_is_the_same(frames_in_token, level):
    network, backbone = cogvideox_twins(frames_in_token)
    texts = [torch.randn(1, 5, 24) for _ in range(2)]
    prompts = [prompt_of([[text, {}]]) for text in texts]
    z, schedule = torch.randn(FRAMES, 16, *SIZE), backbone.denoiser.schedule(STEPS)
    label = schedule.label(level)
    one = Evaluation(z.expand(2, -1, -1, -1, -1), label, tuple(prompts), (NEGATIVE, POSITIVE))
    core = backbone.denoiser.session(prompts, z, schedule, lambda predict: predict(one, PLAIN))
    for got, text in zip(core, texts):
        with torch.no_grad():
            want = network(
                z[None].double(), text.double(), torch.tensor([label]), image_rotary_emb=turns(network)
            ).sample[0]
        assert want.std() > 0.05
        assert_close(got, want.float(), torch.float32)
    assert (core[0] - core[1]).abs().max() > 1e-3
