from dataclasses import dataclass, replace

import pytest
import torch

from weft.benchmarks.measure import peak_bytes
from weft.engine.call import Evaluation, softmax_attention
from weft.engine.edit import edit
from weft.engine.inversion import invert
from weft.engine.plan import PLAIN, Control, EditPlan
from weft.engine.words import NEGATIVE, POSITIVE
from weft.methods.spatio_temporal import SpatioTemporalAttention
from weft.tests.methods.calls import SCALE, SITE, attend, attended, call_of
from weft.tests.numerics import assert_close
from weft.tests.tiny import make_latents


def called(q, k, v, kind="spatial"):
    rows, site = (NEGATIVE, POSITIVE)[: len(q)], replace(SITE, kind=kind)
    return call_of(q, k, v, rows, site=site, grid=(q.shape[1], 3, 4))


def inputs(frames=5, rows=2, heads=2, tokens=12, size=8):
    return torch.randn(3, rows, frames, heads, tokens, size, dtype=torch.float64).unbind()


def by_hand(q, k, v, radius):
    out = torch.empty_like(q)
    for r in range(q.shape[0]):
        for f in range(q.shape[1]):
            near = [j for j in range(q.shape[1]) if not radius or abs(j - f) <= radius]
            for h in range(q.shape[2]):
                keys = torch.cat([k[r, j, h] for j in near])
                values = torch.cat([v[r, j, h] for j in near])
                out[r, f, h] = (q[r, f, h] @ keys.T * SCALE).softmax(-1) @ values
    return out


@pytest.mark.parametrize("radius", [0, 1, 2, 4, 9])
@pytest.mark.parametrize("attend", [attend, softmax_attention], ids=["by hand", "as it runs"])
def test_it_is_dense_attention_over_the_frames_near(radius, attend):
    x = inputs()
    assert_close(SpatioTemporalAttention(radius).attention(called(*x), attend), by_hand(*x, radius))


@pytest.mark.parametrize("kind", ["cross", "temporal"])
def test_other_attention_is_left_alone(kind):
    call = called(*inputs(), kind)
    assert torch.equal(SpatioTemporalAttention().attention(call, attend), attend(call))


def test_one_frame_is_the_plain_attention():
    x = inputs(frames=1)
    assert_close(SpatioTemporalAttention().attention(called(*x), softmax_attention), attended(*x))


def test_identical_frames_stay_as_they_are():
    """Every token is there F times, which changes no mean."""
    x = [one[:, :1].expand(-1, 5, -1, -1, -1) for one in inputs()]
    assert_close(SpatioTemporalAttention().attention(called(*x), softmax_attention), attended(*x))


def test_no_more_is_held_than_for_one_frame():
    """Beyond what comes in and goes out, and the keys: all logits of 16 frames would be 16 times those of one."""
    held = {}
    for frames in (4, 16):
        call = call_of(*torch.randn(3, 1, frames, 1, 256, 8).unbind(), grid=(frames, 16, 16))
        held[frames] = peak_bytes(lambda c=call: SpatioTemporalAttention().attention(c, softmax_attention))
        held[frames] -= 4 * call.q.nbytes  # keys, values, outputs, and those joined
    logits = 256 * 256 * 4
    assert held[16] < 16 * 16 * logits / 8
    assert held[16] < 2 * held[4] + 16 * logits


@dataclass(frozen=True)
class Seen(Control):
    """Which frames each call sees, next to the softmax."""

    slot = "keys"
    seen: list

    def attention(self, call, attend):
        self.seen.append((call.site.kind, call.q.shape[1], call.k.shape[1], call.seen))
        return attend(call)


def test_in_a_network_every_spatial_layer_sees_the_clip(tiny_image):
    latents = make_latents(3, (5, 9))[None]
    e = Evaluation(latents, 501, (tiny_image.text.embed("a red square"),), (POSITIVE,))
    inner = Seen([])
    with torch.no_grad():
        tiny_image.denoiser.predict(e, EditPlan((SpatioTemporalAttention(), inner)))
    spatial = [rest for kind, *rest in inner.seen if kind == "spatial"]
    assert len(spatial) == sum(s.kind == "spatial" for s in tiny_image.denoiser.sites)
    assert all(rest == [3, 3, ((0, 1, 2),) * 3] for rest in spatial)
    assert all(seen is None for kind, *_, seen in inner.seen if kind != "spatial")


def test_frames_that_differ_pull_at_each_other(tiny_image64):
    e = Evaluation(make_latents(3, (5, 9))[None], 501, (tiny_image64.text.embed("a red square"),), (POSITIVE,))
    other = e.latents.clone()
    other[0, 2] += 1
    with torch.no_grad():
        alone, changed = (tiny_image64.denoiser.predict(replace(e, latents=z)) for z in (e.latents, other))
        assert_close(changed[0, :2], alone[0, :2])
        plan = PLAIN.then(SpatioTemporalAttention())
        seeing, changed = (tiny_image64.denoiser.predict(replace(e, latents=z), plan) for z in (e.latents, other))
    assert (changed[0, :2] - seeing[0, :2]).abs().max() > 1e-4


def test_it_guides_inversion_and_edit_but_not_in_chunks(tiny_image):
    plan = PLAIN.then(SpatioTemporalAttention())
    prompt = tiny_image.text.embed("a red square")
    trajectory = invert(tiny_image, make_latents(), prompt, steps=2, plan=plan)
    assert edit(tiny_image, trajectory, prompt, plan=plan).isfinite().all()
    with pytest.raises(ValueError, match="Spatio-Temporal Attention looks at all 3 frames together"):
        edit(tiny_image, trajectory, prompt, plan=plan, chunk_frames=1)


def test_a_negative_radius_is_refused():
    with pytest.raises(ValueError, match=r"want 0 \(all frames\) or more frames on each side, got -1"):
        PLAIN.then(SpatioTemporalAttention(frames=-1))
