"""What a control sees of the network and may change in it, and that nothing of it stays."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from einops import rearrange

from weft.backbones.diffusers.taps import TappedAttention
from weft.engine.call import Evaluation
from weft.engine.plan import Control, EditPlan
from weft.engine.words import NEGATIVE, POSITIVE, SOURCE
from weft.tests.numerics import assert_close
from weft.tests.tiny import make_latents

ODD = (5, 9)  # odd at every level: 5x9, 3x5, 2x3


def evaluation(backbone, rows=2, frames=3, size=ODD, label=501.0):
    texts = ["a red square", "a blue cross on a gray plain background", "a small circle"][:rows]
    return Evaluation(
        torch.stack([make_latents(frames, size, seed) for seed in range(rows)]),
        label,
        tuple(backbone.text.embed(t) for t in texts),
        (SOURCE, NEGATIVE, POSITIVE)[:rows],
    )


@torch.no_grad()
def predict(backbone, e, *controls):
    return backbone.denoiser.predict(e, EditPlan(controls))


@dataclass(frozen=True)
class Watch(Control):
    """Changes nothing and keeps every call."""

    calls: dict = field(default_factory=dict)

    def attention(self, call, attend):
        out = attend(call)
        self.calls[call.site.layer] = (call, call.q, call.k, call.v, out)
        return out


@pytest.mark.parametrize(("frames", "size"), [(2, ODD), (3, (6, 10)), (5, (4, 7))])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_control_that_changes_nothing_leaves_the_output(tiny64, rows, frames, size):
    e = evaluation(tiny64, rows, frames, size)
    got, plain = predict(tiny64, e, Watch()), predict(tiny64, e)
    assert plain.shape == (rows, frames, 4, *size)
    assert_close(got, plain)


def test_without_acting_controls_the_network_is_not_touched(tiny, monkeypatch):
    attention = tiny.denoiser.network.mid_block.attentions[0].transformer_blocks[0].attn1
    monkeypatch.setattr(attention, "set_processor", lambda *_: pytest.fail("a processor was replaced"))
    e = evaluation(tiny)
    text = torch.cat([p.cond["embedding"] for p in e.prompts])
    with torch.no_grad():
        want = tiny.denoiser.network(e.latents.transpose(1, 2), e.label, text, return_dict=False)[0].transpose(1, 2)
    assert torch.equal(predict(tiny, e), want)
    assert torch.equal(predict(tiny, e, Control(), Shift(0.0)), want)


def test_the_tiny_network_uses_frames_and_text(tiny):
    """Or half of these tests would pass for nothing."""
    e = evaluation(tiny, rows=1)
    plain = predict(tiny, e)
    later = torch.cat([e.latents[:, :2], -e.latents[:, 2:]], 1)
    changed = predict(tiny, Evaluation(later, e.label, e.prompts, e.rows))
    assert (changed - plain)[:, 0].abs().max() > 1e-2
    reworded = predict(tiny, Evaluation(e.latents, e.label, (tiny.text.embed("a small circle"),), e.rows))
    assert (reworded - plain).abs().max() > 1e-3


def test_rows_do_not_mix(tiny64):
    e = evaluation(tiny64, rows=3)
    order = [2, 0, 1]
    swapped = Evaluation(e.latents[order], e.label, tuple(e.prompts[i] for i in order), (SOURCE, NEGATIVE, POSITIVE))
    for controls in ((), (Watch(),)):
        assert_close(predict(tiny64, swapped, *controls), predict(tiny64, e, *controls)[order])


@dataclass(frozen=True)
class CopyFirstRow(Control):
    """Spatial attention of every row is that of row 0."""

    def attention(self, call, attend):
        out = attend(call)
        return out[:1].expand_as(out) if call.site.kind == "spatial" else out


def test_a_control_acts_on_the_row_it_means(tiny64):
    e = evaluation(tiny64, rows=2)
    got, plain = predict(tiny64, e, CopyFirstRow()), predict(tiny64, e)
    assert_close(got[0], plain[0])
    assert (got[1] - plain[1]).abs().max() > 1e-2


def test_sites_are_listed_in_the_order_they_run(tiny):
    running = []
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: running.append(name))
        for name, module in tiny.denoiser.network.named_modules()
        if name.endswith((".attn1", ".attn2"))
    ]
    predict(tiny, evaluation(tiny))
    for hook in hooks:
        hook.remove()
    assert [s.layer for s in tiny.denoiser.sites] == running
    assert [s.order for s in tiny.denoiser.sites] == list(range(len(running)))


def by_hand(backbone, e, layer):
    """(to_q, to_k) outputs of a layer in the unmodified network, [batch, tokens, heads x D]."""
    module, caught = backbone.denoiser.network.get_submodule(layer), {}
    hooks = [
        getattr(module, name).register_forward_hook(lambda m, i, out, name=name: caught.update({name: out}))
        for name in ("to_q", "to_k")
    ]
    predict(backbone, e)
    for hook in hooks:
        hook.remove()
    return caught["to_q"], caught["to_k"]


def test_queries_and_keys_are_laid_out_as_promised(tiny64):
    rows, frames = 2, 3
    e, watch = evaluation(tiny64, rows, frames), Watch()
    predict(tiny64, e, watch)
    grids = {0: (3, 5, 9), 1: (3, 3, 5), 2: (3, 2, 3)}
    assert list(watch.calls) == [s.layer for s in tiny64.denoiser.sites]
    for site in tiny64.denoiser.sites:
        call, q, k, v, out = watch.calls[site.layer]
        module = tiny64.denoiser.network.get_submodule(site.layer)
        assert (call.site, call.grid) == (site, grids[site.level])
        assert (call.rows, call.frames, call.run) == (e.rows, e.frames, e.run)
        assert call.scale == pytest.approx((module.inner_dim / module.heads) ** -0.5)
        pixels, heads = call.grid[1] * call.grid[2], module.heads
        groups, tokens = (pixels, frames) if site.kind == "temporal" else (frames, pixels)
        keys = 16 if site.kind == "cross" else tokens
        assert q.shape == out.shape == (rows, groups, heads, tokens, module.inner_dim // heads), site.layer
        assert k.shape == v.shape == (rows, groups, heads, keys, module.inner_dim // heads), site.layer
        flat_q, flat_k = by_hand(tiny64, e, site.layer)
        assert_close(q, flat_q.view(rows, groups, tokens, heads, -1).transpose(2, 3))
        assert_close(k, flat_k.view(rows, groups, keys, heads, -1).transpose(2, 3))


def test_tokens_are_pixels_row_by_row_and_groups_are_frames_or_pixels(tiny):
    """Seen from the latents: a change in one frame, and in one corner, shows where the layout says."""
    site = next(s for s in tiny.denoiser.sites if s.layer.startswith("down_blocks.0") and s.kind == "spatial")
    first = next(s for s in tiny.denoiser.sites if s.block == "transformer_in")
    e = evaluation(tiny, rows=1, frames=3)
    changed = e.latents.clone()
    changed[0, 1, :, 4, 8] += 5  # the last pixel of the middle frame
    seen = []
    for latents in (e.latents, changed):
        watch = Watch()
        predict(tiny, Evaluation(latents, e.label, e.prompts, e.rows), watch)
        seen.append({layer: call[1] for layer, call in watch.calls.items()})
    temporal = (seen[1][first.layer] - seen[0][first.layer]).abs().sum((0, 2, 4))  # [pixels, frames]
    assert temporal[44, 1] == temporal.max()
    spatial = (seen[1][site.layer] - seen[0][site.layer]).abs().sum((0, 2, 4))  # [frames, pixels]
    assert spatial[1, 44] == spatial.max()


@dataclass(frozen=True)
class Scale(Control):
    """Scales queries going in, and what comes out."""

    q: float = 1.0
    out: float = 1.0

    def attention(self, call, attend):
        return attend(replace(call, q=self.q * call.q)) * self.out


@dataclass(frozen=True)
class Shift(Control):
    by: float

    def attention(self, call, attend):
        return attend(call) + self.by

    def acts_at(self, seam):
        return self.by != 0 and super().acts_at(seam)


@dataclass(frozen=True)
class ScaleThenShift(Control):
    def attention(self, call, attend):
        return attend(replace(call, q=3 * call.q)) * 2 + 0.5


def test_the_first_control_is_outermost_in_the_network(tiny64):
    e = evaluation(tiny64)
    together = predict(tiny64, e, ScaleThenShift())
    assert_close(predict(tiny64, e, Shift(0.5), Scale(q=3.0, out=2.0)), together)
    other_way = predict(tiny64, e, Scale(q=3.0, out=2.0), Shift(0.5))
    assert (other_way - together).abs().max() > 1e-2


@dataclass(frozen=True)
class AddToBlock(Control):
    block: str
    by: float = 0.0
    times: float = 1.0
    shapes: dict = field(default_factory=dict)

    def feature(self, features):
        self.shapes[features.block.name] = tuple(features.x.shape)
        return features.x * self.times + self.by if features.block.name == self.block else features.x


def test_the_feature_seam_reads_and_replaces_block_outputs(tiny64):
    e = evaluation(tiny64, rows=2, frames=3)
    reading = AddToBlock("none")
    plain = predict(tiny64, e)
    assert_close(predict(tiny64, e, reading), plain)
    stages = [b.name for b in tiny64.denoiser.blocks if b.kind == "stage"]
    assert stages == ["up_blocks.0", "up_blocks.1", "up_blocks.2"]
    assert {name: reading.shapes[name] for name in stages} == {
        "up_blocks.0": (2, 3, 16, 3, 5), "up_blocks.1": (2, 3, 16, 5, 9), "up_blocks.2": (2, 3, 8, 5, 9),
    }  # fmt: skip
    for block in tiny64.denoiser.blocks:
        assert reading.shapes[block.name][-2:] == {0: (5, 9), 1: (3, 5), 2: (2, 3)}[block.level]
        assert (predict(tiny64, e, AddToBlock(block.name, times=-1.0)) - plain).abs().max() > 1e-3


def test_a_replaced_feature_is_what_the_network_goes_on_with(tiny64):
    """Zeros out of the last block: what is left is the last layers' answer to nothing."""
    e = evaluation(tiny64)
    got = predict(tiny64, e, AddToBlock("up_blocks.2", times=0.0))
    network = tiny64.denoiser.network
    with torch.no_grad():
        zeros = torch.zeros(1, 8, *ODD, dtype=torch.float64)
        want = network.conv_out(network.conv_act(network.conv_norm_out(zeros)))[0].float()
    assert_close(got, want.expand_as(got))


def test_the_first_control_sees_a_feature_last(tiny64):
    e = evaluation(tiny64)
    add, double = AddToBlock("up_blocks.1", by=1.0), AddToBlock("up_blocks.1", times=2.0)
    both = AddToBlock("up_blocks.1", by=1.0, times=2.0)
    assert_close(predict(tiny64, e, add, double), predict(tiny64, e, both))
    assert (predict(tiny64, e, double, add) - predict(tiny64, e, both)).abs().max() > 1e-3


@dataclass(frozen=True)
class SourceRow(Control):
    """Replaces the features of all rows by those of the source, frame by frame."""

    def feature(self, features):
        assert features.x.shape[:2] == (len(features.rows), 3)
        assert features.rows == (SOURCE, NEGATIVE)
        assert torch.equal(features.source, features.x[:1])
        return features.source.expand_as(features.x) if features.block.name == "up_blocks.2" else features.x


def test_features_are_rows_first(tiny64):
    got, plain = predict(tiny64, evaluation(tiny64), SourceRow()), predict(tiny64, evaluation(tiny64))
    assert_close(got, plain[[0, 0]])


@dataclass(frozen=True)
class Fail(Control):
    seam: str
    error: type[BaseException] = RuntimeError

    def attention(self, call, attend):
        if self.seam == "attention" and call.site.kind == "temporal" and call.site.level == 2:
            raise self.error("enough")
        return attend(call)

    def feature(self, features):
        if self.seam == "feature":
            raise self.error("enough")
        return features.x


@pytest.mark.parametrize("seam", ["attention", "feature"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_or_cancel_puts_everything_back(tiny, seam, error):
    """The fixture compares processors and hooks as well."""
    e = evaluation(tiny)
    before = predict(tiny, e)
    with pytest.raises(error, match="enough"):
        predict(tiny, e, Watch(), Fail(seam, error))
    assert torch.equal(predict(tiny, e), before)


def test_a_control_may_run_the_network_itself(tiny64):
    """Taps nest: an inner evaluation ends with the outer one's processors in place."""
    e = evaluation(tiny64)

    @dataclass(frozen=True)
    class Inner(Control):
        def attention(self, call, attend):
            if call.site.order == 8:
                predict(tiny64, e, Shift(1.0))
            return attend(call) + 0.5

    assert_close(predict(tiny64, e, Inner()), predict(tiny64, e, Shift(0.5)))


def test_an_attention_mask_is_refused_by_name(tiny):
    site = tiny.denoiser.sites[3]
    layer = tiny.denoiser.network.get_submodule(site.layer)
    tap = TappedAttention(site, (3, 5, 9), evaluation(tiny), [Watch()])
    with pytest.raises(ValueError, match="attn2 was given an attention mask, which controls do not support"):
        tap(layer, torch.zeros(6, 45, 8), torch.zeros(6, 16, 64), attention_mask=torch.zeros(6, 1, 16))


def test_temporal_attention_attends_over_frames_only(tiny64):
    """The unmodified attention, redone from q, k and v by hand."""
    watch = Watch()
    predict(tiny64, evaluation(tiny64), watch)
    for call, q, k, v, out in watch.calls.values():
        maps = (torch.einsum("rghmd,rghnd->rghmn", q.double(), k.double()) * call.scale).softmax(-1)
        want = torch.einsum("rghmn,rghnd->rghmd", maps, v.double())
        assert_close(out, want)
        if call.site.kind == "temporal":
            assert maps.shape[-1] == 3
        assert rearrange(out, "r g h m d -> (r g) m (h d)").shape[0] == out.shape[0] * out.shape[1]


@dataclass(frozen=True)
class OfTheSource(Control):
    """Every row's map is the source's."""

    def attention(self, call, attend):
        return attend(call.mapped(call.source) if call.site.kind == "spatial" else call)


def test_every_layer_knows_the_sources_call_where_the_source_is_in_the_batch(tiny64):
    e, watch = evaluation(tiny64, rows=3), Watch()
    predict(tiny64, e, watch)
    for call, *_ in watch.calls.values():
        assert call.source.rows == (SOURCE,)
        assert torch.equal(call.source.q, call.q[:1])
        assert call.tokens.shape[:2] == call.q.shape[:2]
        assert call.key_tokens is call.tokens
    without = e.only(NEGATIVE, POSITIVE)
    with pytest.raises(ValueError, match=r"no source beside the edit at .*: this evaluation has negative, positive"):
        predict(tiny64, without, OfTheSource())
    got, plain = predict(tiny64, e, OfTheSource()), predict(tiny64, e)
    assert_close(got[0], plain[0])
    assert (got[1:] - plain[1:]).abs().amax((1, 2, 3, 4)).min() > 1e-3


@dataclass(frozen=True)
class AllFrames(Control):
    """Spatial attention over the frames of the clip, by what a call can be asked for, or by hand."""

    by_hand: bool

    def attention(self, call, attend):
        if call.site.kind != "spatial":
            return attend(call)
        if not self.by_hand:
            return attend(call.seeing_all())
        k, v = (rearrange(x, "r g h m d -> r 1 h (g m) d") for x in (call.k, call.v))
        out = (call.scale * call.q.double() @ k.double().mT).softmax(-1) @ v.double()
        return out.to(call.q)


def test_frames_that_see_all_frames_go_through_the_network(tiny64):
    e = evaluation(tiny64, frames=4)
    got, plain = predict(tiny64, e, AllFrames(False)), predict(tiny64, e)
    assert_close(got, predict(tiny64, e, AllFrames(True)))
    assert (got - plain).abs().max() > 1e-3
