"""A call of an attention layer: what it is made of, what a control makes of it, and the attention that it comes to."""

from dataclasses import replace

import pytest
import torch

from weft.engine.call import Call, Evaluation, Features, Run, beside, softmax_attention
from weft.engine.monitor import Monitor
from weft.engine.words import NEGATIVE, POSITIVE, SOURCE, UNCONDITIONAL, Block, Prompt, Row, Site
from weft.tests.numerics import assert_close, assert_gradient

SITE = Site("mid.attn1", "spatial", "mid", 1, 0)
ROWS = (SOURCE, NEGATIVE, POSITIVE)


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def make(rows=ROWS, groups=3, heads=2, queries=5, keys=None, size=7, sets=None, width=9, **more):
    """A call whose numbers are all different; `sets` of keys, by default one a group."""
    keys, sets = keys or queries, sets or groups
    tokens = double(len(rows), groups, queries, width)
    return Call(
        SITE,
        rows,
        double(len(rows), groups, heads, queries, size),
        double(len(rows), sets, heads, keys, size),
        double(len(rows), sets, heads, keys, size),
        tuple(range(groups)),
        (groups, 1, queries),
        0.3,
        tokens,
        tokens,
        lambda x: (x, -x),
        Run(),
        **more,
    )


# ---- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [(POSITIVE,), (NEGATIVE, POSITIVE), (POSITIVE, SOURCE), (POSITIVE, NEGATIVE, SOURCE)])
def test_some_rows_of_a_call_in_any_order(rows):
    call = make(bias=double(3, 1, 2, 5, 5), map_of=(SOURCE, SOURCE, NEGATIVE))
    call = replace(call, key_tokens=double(*call.tokens.shape), seen=((0,), (1, 2), (2,)))
    got, at = call.only(*rows), [ROWS.index(row) for row in rows]
    assert got.rows == rows
    for name in ("q", "k", "v", "bias", "tokens", "key_tokens"):
        assert torch.equal(getattr(got, name), getattr(call, name)[at]), name
    assert got.map_of == tuple(call.map_of[i] for i in at)
    assert (got.seen, got.frames, got.grid, got.scale) == (call.seen, call.frames, call.grid, call.scale)
    assert call.only(*ROWS) is call


def test_a_bias_for_all_rows_stays_for_all_rows_and_tokens_of_one_kind_stay_one():
    got = make(bias=double(1, 1, 1, 5, 5)).only(POSITIVE)
    assert got.bias.shape == (1, 1, 1, 5, 5)
    assert got.key_tokens is got.tokens
    assert got.map_of == ()


def test_rows_that_follow_each_other_are_no_copy():
    call = make()
    assert call.only(NEGATIVE, POSITIVE).k.data_ptr() == call.k[1].data_ptr()
    assert call.only(NEGATIVE).q.data_ptr() == call.q[1].data_ptr()


def test_rows_of_another_region_are_other_rows():
    rows = (Row("positive"), Row("positive", 1))
    call = make(rows)
    assert torch.equal(call.only(rows[1]).q, call.q[1:])


def test_a_row_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"no unconditional, positive of region 3 row at mid\.attn1: .* source, neg"):
        make().only(UNCONDITIONAL, SOURCE, Row("positive", 2))
    with pytest.raises(ValueError, match="this call has none"):
        make(()).only(SOURCE)


def test_a_call_knows_the_sources_if_it_is_in_the_batch_or_was_given():
    call = beside(make())
    assert call.source.rows == (SOURCE,)
    assert torch.equal(call.source.q, call.q[:1])
    alone = call.only(NEGATIVE, POSITIVE)
    assert alone.source is call.source  # it is still beside its rows where they are without it
    assert beside(alone) is alone
    assert beside(call) is call
    without = make((NEGATIVE, POSITIVE))
    assert beside(without) is without
    with pytest.raises(ValueError, match=r"no source beside the edit at mid\.attn1: .* has negative, positive"):
        _ = without.source


def test_features_know_the_sources_in_the_same_way():
    block, x = Block("up.1", "stage", 1, 0), double(2, 3, 4, 5, 6)
    assert Features(block, x, (SOURCE, POSITIVE), Run(), x[:1]).source.shape == (1, 3, 4, 5, 6)
    with pytest.raises(ValueError, match=r"no source beside the edit at up\.1: this evaluation has positive"):
        _ = Features(block, x[1:], (POSITIVE,), Run()).source


# ---- whose map, whose keys -------------------------------------------------------------------------------------------


def test_a_mapped_call_has_the_queries_and_keys_of_the_other_and_values_of_its_own():
    call = beside(make())
    got = call.mapped(call.source)
    assert (got.rows, got.map_of) == (ROWS, (SOURCE,) * 3)
    for row in range(3):
        assert torch.equal(got.q[row], call.q[0])
        assert torch.equal(got.k[row], call.k[0])
        assert torch.equal(got.key_tokens[row], call.tokens[0])
    assert got.v is call.v
    assert got.tokens is call.tokens
    assert got.only(POSITIVE).map_of == (SOURCE,)
    assert_close(softmax_attention(got)[0], softmax_attention(call)[0])  # the source's own is what it was


def test_what_controls_ask_to_be_seen_adds_up_in_the_order_of_the_clip():
    call = make()
    once = call.seeing([[0], [2, 1], [2]])
    assert once.seen == ((0,), (2, 1), (2,))
    assert once.seeing([range(2), [1], [0, 2]]).seen == ((0, 1), (1, 2), (0, 2))
    assert once.seeing_all().seen == ((0, 1, 2),) * 3
    assert call.seeing_all().seen == ((0, 1, 2),) * 3
    assert call.seen is None
    assert (once.k is call.k, once.v is call.v) == (True, True)  # nothing is gathered before attention


@pytest.mark.parametrize("groups", [2, 4])
def test_every_group_must_be_told_what_it_sees(groups):
    with pytest.raises(ValueError, match=f"each of 3 groups sees, got those of {groups}"):
        make().seeing([[0]] * groups)


def test_keys_that_stand_for_all_frames_are_seen_by_all_already():
    call = make(bias=double(1, 1, 1, 1, 15), seen=((0, 1, 2),) * 3)
    k, v = double(2, 3, 1, 2, 4, 7)
    got = call.with_keys(k, v)
    assert (got.k is k, got.v is v, got.seen, got.bias) == (True, True, None, None)
    assert got.seeing_all() is got
    assert got.seeing([[0], [1], [2]]) is got


# ---- attention -------------------------------------------------------------------------------------------------------


def brute(call):
    """Written out: row by row, group by group."""
    out = torch.empty_like(call.q)
    for r in range(len(call.q)):
        for g in range(call.q.shape[1]):
            own = (g,) if call.k.shape[1] == call.q.shape[1] else (0,)
            at = own if call.seen is None else call.seen[g]
            k, v = (torch.cat([x[r, i] for i in at], -2) for x in (call.k, call.v))
            logits = call.scale * (call.q[r, g] @ k.mT)
            if call.bias is not None:
                r_, g_ = (min(i, n - 1) for i, n in zip((r, g), call.bias.shape))
                logits = logits + call.bias[r_, g_]
            out[r, g] = logits.softmax(-1) @ v
    return out


SEEN = {
    "its own": None,
    "all of them": ((0, 1, 2),) * 3,
    "one": ((1,),) * 3,
    "as many": ((0, 1), (2, 1), (0, 2)),
    "others at the ends": ((0, 1), (0, 1, 2), (2,)),
    "one twice": ((0, 0), (1, 1), (2, 2)),
}


@pytest.mark.parametrize("seen", SEEN.values(), ids=SEEN)
@pytest.mark.parametrize(
    ("rows", "heads", "queries", "keys"), [(ROWS, 2, 5, 5), ((POSITIVE,), 1, 1, 3), (ROWS, 3, 7, 2)]
)
def test_attention_over_what_each_group_sees(seen, rows, heads, queries, keys):
    call = make(rows, heads=heads, queries=queries, keys=keys, seen=seen)
    got = softmax_attention(call)
    assert got.shape == call.q.shape
    assert_close(got, brute(call))


@pytest.mark.parametrize("shape", [(3, 3, 2, 5, 4), (1, 3, 1, 5, 4), (3, 1, 2, 1, 4), (1, 1, 1, 1, 4)])
def test_a_bias_is_added_to_the_logits(shape):
    call = make(keys=4, bias=double(*shape))
    assert_close(softmax_attention(call), brute(call))
    barred = torch.zeros(shape, dtype=torch.float64)
    barred[..., 1] = -torch.inf
    without = replace(call, k=call.k[..., [0, 2, 3], :], v=call.v[..., [0, 2, 3], :], bias=None)
    assert_close(softmax_attention(replace(call, bias=barred)), brute(without))


@pytest.mark.parametrize("seen", ["all of them", "as many"])
def test_a_bias_of_joined_keys_is_of_all_of_them(seen):
    seen = SEEN[seen]
    for rows, heads in ((1, 1), (3, 1), (3, 2)):
        call = make(keys=4, seen=seen, bias=double(rows, 1, heads, 1, 4 * len(seen[0])))
        assert_close(softmax_attention(call), brute(call))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("bias", [None, (3, 1, 2, 1, 4), (1, 1, 2, 1, 4)])
def test_one_set_of_keys_serves_all_groups(groups, bias):
    call = make(groups=groups, keys=4, sets=1, bias=None if bias is None else double(*bias))
    got = softmax_attention(call)
    assert got.shape == call.q.shape
    assert_close(got, brute(call))
    everyone = replace(call, k=call.k.expand(-1, groups, -1, -1, -1), v=call.v.expand(-1, groups, -1, -1, -1))
    assert_close(got, softmax_attention(everyone))


@pytest.mark.parametrize("groups", [1, 3])
def test_one_frame_that_sees_itself_is_attention_as_it_was(groups):
    call = make(groups=groups)
    assert_close(softmax_attention(call.seeing([[g] for g in range(groups)])), softmax_attention(call))


@pytest.mark.parametrize("seen", SEEN.values(), ids=SEEN)
def test_half_precision_comes_out_as_it_went_in(seen):
    call = make(seen=seen)
    half = replace(call, q=call.q.half(), k=call.k.half(), v=call.v.half())
    got = softmax_attention(half)
    assert got.dtype == torch.float16
    assert_close(got, softmax_attention(call), torch.float16)
    with_bias = replace(make(sets=1, keys=4), bias=double(1, 1, 2, 1, 4))
    halved = replace(with_bias, q=with_bias.q.half(), k=with_bias.k.half(), v=with_bias.v.half())
    assert_close(softmax_attention(halved), softmax_attention(with_bias), torch.float16)


@pytest.mark.parametrize("seen", SEEN.values(), ids=SEEN)
def test_gradients_pass(seen):
    call = make(seen=seen)
    tensors = [x.requires_grad_() for x in (call.q, call.k, call.v)]
    weight = double(*call.q.shape)
    got = torch.autograd.grad((softmax_attention(call) * weight).sum(), tensors)
    want = torch.autograd.grad((written_out(call) * weight).sum(), tensors)
    for one, other in zip(got, want):
        assert_gradient(one, other)


def written_out(call):
    """As `brute`, for gradients and without a bias."""
    groups = range(call.q.shape[1])
    seen = call.seen or [(g,) for g in groups]
    k, v = ([torch.cat([x[:, i] for i in at], -2) for at in seen] for x in (call.k, call.v))
    return torch.stack([(call.scale * call.q[:, g] @ k[g].mT).softmax(-1) @ v[g] for g in groups], 1)


# ---- evaluations -----------------------------------------------------------------------------------------------------


def evaluation(frames=4, **more):
    prompts = (
        Prompt({"embedding": double(1, 2, 3)}, "a cat", "text"),
        Prompt({"embedding": double(frames, 2, 3), "pooled": double(1, 3)}, "each its own", "text", frames=frames),
    )
    return Evaluation(double(2, frames, 4, 5, 6), 501.0, prompts, (NEGATIVE, POSITIVE), **more)


def test_an_evaluation_is_of_all_frames_unless_it_says_which():
    assert evaluation().frames == (0, 1, 2, 3)
    assert evaluation(frames=3).select([2, 0]).frames == (2, 0)
    assert evaluation().select([3, 1]).select([1]).frames == (1,)


def test_some_frames_of_an_evaluation_take_their_pictures_and_prompts_along():
    whole = evaluation(image=double(4, 4, 5, 6), whole=True)
    got = whole.select([3, 1])
    assert torch.equal(got.latents, whole.latents[:, [3, 1]])
    assert torch.equal(got.image, whole.image[[3, 1]])
    assert got.prompts[0] is whole.prompts[0]
    assert got.prompts[1].frames == 2
    assert torch.equal(got.prompts[1].cond["embedding"], whole.prompts[1].cond["embedding"][[3, 1]])
    assert torch.equal(got.prompts[1].cond["pooled"], whole.prompts[1].cond["pooled"])  # one for all frames
    assert (got.rows, got.label, got.whole, got.run) == (whole.rows, 501.0, True, whole.run)


def test_some_rows_of_an_evaluation():
    whole = evaluation()
    got = whole.only(POSITIVE, NEGATIVE)
    assert torch.equal(got.latents, whole.latents[[1, 0]])
    assert (got.prompts, got.rows) == (whole.prompts[::-1], (POSITIVE, NEGATIVE))
    assert got.prompt(POSITIVE) is whole.prompts[1]


def test_what_is_shared_goes_with_the_evaluation_and_not_back():
    kept, monitor = {}, Monitor()
    before = evaluation(run=Run(2, 5, monitor, kept=kept))
    one = before.share("me", 1)
    both = one.share("you", 2)
    assert (dict(before.run.shared), dict(one.run.shared)) == ({}, {"me": 1})
    assert dict(both.run.shared) == {"me": 1, "you": 2}
    assert (both.run.step, both.run.steps, both.run.monitor) == (2, 5, monitor)
    assert both.run.kept is kept  # of the run, so the same for all
    assert both.select([0]).run is both.run


def test_which_frames_are_seen_is_told_to_a_device_once_a_run():
    call = make().seeing((max(f - 1, 0), f) for f in range(3))
    first = softmax_attention(call)
    assert len(call.run.kept) == 1
    (told,) = call.run.kept.values()
    assert torch.equal(softmax_attention(call), first)
    assert next(iter(call.run.kept.values())) is told


def test_frames_that_follow_each_other_are_taken_without_a_copy():
    e = Evaluation(torch.randn(1, 6, 4, 2, 2), 1, (Prompt({}, "", ""),), (SOURCE,))
    some = e.select(range(2, 5))
    assert some.frames == (2, 3, 4)
    assert some.latents.untyped_storage().data_ptr() == e.latents.untyped_storage().data_ptr()
    assert torch.equal(some.latents, e.latents[:, [2, 3, 4]])
    assert torch.equal(e.select([4, 1]).latents, e.latents[:, [4, 1]])
