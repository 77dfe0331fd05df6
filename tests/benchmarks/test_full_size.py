"""The script of full-size steps, on narrow networks of the same classes."""

from dataclasses import replace

import diffusers
import pytest
import torch

from weft.benchmarks import counted, full_size

UNET = {"block_out_channels": (32, 32), "cross_attention_dim": 16, "layers_per_block": 1}
NARROW = {
    "sd": {
        **UNET, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
    "lavie": {"block_out_channels": (64, 64, 64, 64), "heads": 2, "cross_attention_dim": 16},
    "zeroscope": {
        **UNET, "down_block_types": ("CrossAttnDownBlock3D",) * 2, "up_block_types": ("CrossAttnUpBlock3D",) * 2,
        "attention_head_dim": 8,
    },
    "animatediff": {
        **UNET, "down_block_types": ("CrossAttnDownBlockMotion",) * 2,
        "up_block_types": ("CrossAttnUpBlockMotion",) * 2, "num_attention_heads": 4, "motion_num_attention_heads": 4,
    },
    "cogvideox-2b": {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 4, "text_embed_dim": 16},
}  # fmt: skip
OLD = tuple(int(n) for n in diffusers.__version__.split(".")[:2]) < (0, 31)


def test_every_model_of_the_table_is_tried_but_the_larger_of_two():
    assert set(full_size.CASES) == {*NARROW, "cogvideox-5b"}


@pytest.mark.parametrize("model", [m for m in NARROW if not (OLD and m.startswith("cogvideox"))])
def test_every_stage_runs(model, monkeypatch):
    case = full_size.CASES[model]
    frames, channels = min(3, case.latents[0]), case.latents[1]
    text = (226 if model.startswith("cogvideox") else 7, 16)
    small = replace(case, latents=(frames, channels, 8, 8), text=text, config=tuple(NARROW[model].items()))
    monkeypatch.setitem(full_size.CASES, model, small)
    for stage in full_size.stages(model):
        got = full_size.measure(small, stage, "cpu", "float32")
        assert got["s"] > 0
        assert got["weights"] > 0
        assert got["peak"] >= 0


def test_what_is_counted_is_what_is_alive():
    network = torch.nn.Linear(4, 8)
    with counted.counting(network) as held:
        x = torch.empty(3, 4)
        y = network(x)
        assert held.live == 4 * (3 * 4 + 3 * 8)
        z = y.relu()
        del y, z
        assert held.live == 4 * 3 * 4
        assert held.peak == 4 * (3 * 4 + 2 * 3 * 8)


def test_a_step_is_counted_without_being_taken(monkeypatch):
    """And what is evaluated again is not held."""
    case = full_size.CASES["zeroscope"]
    small = replace(case, latents=(3, 4, 16, 16), text=(7, 16), config=tuple(NARROW["zeroscope"].items()))
    peaks = {stage: full_size.count(small, stage, "float16")["peak"] for stage in full_size.stages("zeroscope")[:4]}
    assert 0 < peaks["inversion"] < peaks["sampling"]
    assert peaks["graph, recompute"] < peaks["graph"]
