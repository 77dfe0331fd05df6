from dataclasses import replace

import pytest
import torch

from weft.backbones.diffusers.loading import load_backbone
from weft.backbones.memory import PlainMemory
from weft.benchmarks.measure import Operations
from weft.engine.correspondence import Correspondence
from weft.engine.edit import edit
from weft.engine.inversion import invert
from weft.engine.plan import PLAIN
from weft.engine.words import NEGATIVE, POSITIVE
from weft.methods.correspondence import correspondence
from weft.methods.correspondence_attention import CorrespondenceAttention, all_lists, side_by_side
from weft.methods.spatio_temporal import SpatioTemporalAttention
from weft.tests.methods.calls import SCALE, SITE, attend, attended, call_of
from weft.tests.numerics import assert_close
from weft.tests.tiny import COARSE_ONLY, make_folder, make_latents

GRID, FRAMES, K = (4, 5), 4, 2


def found(grid=GRID, frames=FRAMES, k=K, level=0, seed=0, padding=False):
    generator = torch.Generator().manual_seed(seed)
    n = grid[0] * grid[1]
    tables = torch.rand(2, frames - 1, n, n, generator=generator).argsort(-1)[..., :k].int()  # no place twice in a list
    if padding:
        tables[..., 1:].masked_fill_(torch.rand(tables[..., 1:].shape, generator=generator) < 0.5, -1)
    return Correspondence(*tables, grid, level, 9, "model")


def called(q, k, v, grid=GRID, level=0, kind="spatial"):
    site = replace(SITE, kind=kind, level=level)
    return call_of(q, k, v, (NEGATIVE, POSITIVE), site=site, grid=(q.shape[1], *grid))


def inputs(grid=GRID, frames=FRAMES, rows=2, heads=2, size=3):
    return torch.randn(3, rows, frames, heads, grid[0] * grid[1], size, dtype=torch.float64).unbind()


def by_hand(q, k, v, lists, merged=lambda keys, values, there: (keys, values)):
    """Equations 11-14, one token at a time; `lists` [F][N] of (frame, place)."""
    out = torch.zeros_like(q)
    for r, f, n in ((r, f, n) for r in range(q.shape[0]) for f in range(q.shape[1]) for n in range(q.shape[3])):
        keys = torch.stack([k[r, j, :, p].flatten() for j, p in lists[f][n]])
        values = torch.stack([v[r, j, :, p].flatten() for j, p in lists[f][n]])
        keys, values = merged(keys, values, None)
        for h in range(q.shape[2]):
            mine = slice(h * q.shape[4], (h + 1) * q.shape[4])
            out[r, f, h, n] = (keys[:, mine] @ q[r, f, h, n] * SCALE).softmax(0) @ values[:, mine]
    return out


def pairs(table):
    """The lists of a correspondence as (frame, place), padding left out."""
    lists = []
    for f in range(table.frames):
        matches = table.matches(f)
        others = [j for j in range(table.frames) if j != f]
        n = table.grid[0] * table.grid[1]
        lists.append([[(j, p) for j in others for p in matches[j, i].tolist() if p >= 0] for i in range(n)])
    return lists


@pytest.mark.parametrize("tokens", ["output", "projected"])
@pytest.mark.parametrize("padding", [False, True])
def test_a_token_looks_at_its_matches_and_at_nothing_else(tokens, padding):
    table, (q, k, v) = found(padding=padding), inputs()
    got = CorrespondenceAttention(table, tokens, merge_ratio=0).attention(called(q, k, v), attend)
    if tokens == "output":
        q = k = v = attended(q, k, v)
    assert_close(got, by_hand(q, k, v, pairs(table)))


def test_projected_tokens_need_no_attention_of_the_layer():
    CorrespondenceAttention(found(), "projected").attention(called(*inputs()), None)


def joined(keys, values, ratio):
    """Bipartite matching in words: of the tokens at even places, those most alike join one at an odd place, as many as
    the ratio of all says; groups become means."""
    unit = torch.nn.functional.normalize(keys, dim=-1)
    even, odd = range(0, len(keys), 2), range(1, len(keys), 2)
    best = {i: max(odd, key=lambda j: (unit[i] @ unit[j]).item()) for i in even}
    going = sorted(even, key=lambda i: -(unit[i] @ unit[best[i]]).item())[: int(ratio * len(keys))]
    groups = [[j, *(i for i in going if best[i] == j)] for j in odd] + [[i] for i in even if i not in going]
    return tuple(torch.stack([x[group].mean(0) for group in groups]) for x in (keys, values))


@pytest.mark.parametrize("tokens", ["output", "projected"])
@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.9])
def test_lists_are_merged_one_by_one(tokens, ratio):
    table, (q, k, v) = found(k=3), inputs()
    got = CorrespondenceAttention(table, tokens, merge_ratio=ratio).attention(called(q, k, v), attend)
    if tokens == "output":
        q = k = v = attended(q, k, v)
    assert_close(got, by_hand(q, k, v, pairs(table), lambda keys, values, _: joined(keys, values, ratio)))


@pytest.mark.parametrize("frames", [2, 4, 5])
def test_pairs_are_means_over_two_frames_match_by_match(frames):
    table, (q, k, v) = found(frames=frames), inputs(frames=frames)
    control = CorrespondenceAttention(table, "projected", merging="pairs")

    def halved(keys, values, _):
        groups = [
            [f * K + rank for f in (i, i + 1) if f < frames - 1] for i in range(0, frames - 1, 2) for rank in (0, 1)
        ]
        return tuple(torch.stack([x[group].mean(0) for group in groups]) for x in (keys, values))

    got = control.attention(called(q, k, v), attend)
    assert_close(got, by_hand(q, k, v, pairs(table), halved))


def test_tokens_alike_are_merged_without_a_trace():
    table, (q, k, v) = found(), inputs()
    k, v = (x[:, :1, :, :1].expand_as(x) for x in (k, v))
    got = CorrespondenceAttention(table, "projected").attention(called(q, k, v), attend)
    assert_close(got, v)


@pytest.mark.parametrize("strength", [0.25, 1.0])
@pytest.mark.parametrize("tokens", ["output", "projected"])
def test_strength_blends_with_the_plain_attention(strength, tokens):
    table, x = found(), inputs()
    full = CorrespondenceAttention(table, tokens).attention(called(*x), attend)
    got = CorrespondenceAttention(table, tokens, strength=strength).attention(called(*x), attend)
    assert_close(got, (1 - strength) * attended(*x) + strength * full)


@pytest.mark.parametrize(("level", "grid"), [(0, (4, 5)), (1, (2, 3)), (2, (1, 2))])
def test_coarser_layers_ask_the_place_in_their_middle(level, grid):
    table, (q, k, v) = found(), inputs(grid)
    control = CorrespondenceAttention(table, "projected", "all", merge_ratio=0)
    stride, lists = 2**level, []
    for f in range(FRAMES):
        matches = table.matches(f)
        for_frame = []
        for y, x in ((y, x) for y in range(grid[0]) for x in range(grid[1])):
            middle = min(y * stride + stride // 2, 3) * 5 + min(x * stride + stride // 2, 4)
            fine = [(j, p) for j in range(FRAMES) if j != f for p in matches[j, middle].tolist()]
            for_frame.append([(j, p // 5 // stride * grid[1] + p % 5 // stride) for j, p in fine])
        lists.append(for_frame)
    assert_close(control.attention(called(q, k, v, grid, level), attend), by_hand(q, k, v, lists))


@pytest.mark.parametrize(
    ("levels", "level", "kind"),
    [("finest", 1, "spatial"), ("finest", 0, "cross"), ("all", 0, "temporal"), ("all", 0, "finer")],
)
def test_other_layers_are_left_alone(levels, level, kind):
    table, grid = found(level=1 if kind == "finer" else 0), (2, 3) if level else GRID
    call = called(*inputs(grid), grid, level, "spatial" if kind == "finer" else kind)
    assert torch.equal(CorrespondenceAttention(table, levels=levels).attention(call, attend), attend(call))


def test_lists_number_the_tokens_of_the_other_frames():
    table = found()
    lists = all_lists(table)
    assert lists.shape == (FRAMES, 20, 3 * K)
    assert lists.dtype == torch.int32
    for frame, for_frame in enumerate(pairs(table)):
        assert lists[frame].tolist() == [[j * 20 + p for j, p in of_one] for of_one in for_frame]


@pytest.mark.parametrize("among", [(0, 2, 3), (1,), (0, 1, 2, 3)])
def test_among_a_few_frames_lists_hold_the_tokens_of_those_numbered_by_position(among):
    table = found(padding=True)
    got, whole = all_lists(table, among=among), all_lists(table)
    assert got.shape == (len(among), 20, (len(among) - 1) * K)
    for mine, frame in zip(got, among):
        others = [j for j in range(FRAMES) if j != frame]
        here = [j for j in among if j != frame]
        of_all = whole[frame].unflatten(-1, (-1, K))[:, [others.index(j) for j in here]].flatten(1)
        places = torch.where(of_all < 0, -1, of_all % 20)
        first = torch.tensor([among.index(j) * 20 for j in here], dtype=torch.int32).repeat_interleave(K)
        assert torch.equal(mine, torch.where(places < 0, -1, places + first).int())


@pytest.mark.parametrize("frames", [2, 3])
def test_side_by_side_are_the_matches_of_one_rank_in_two_frames(frames):
    lists = torch.arange(frames * K)[None]
    want = {2: [[0, 2, 1, 3]], 3: [[0, 2, 1, 3, 4, -1, 5, -1]]}
    assert side_by_side(lists, K).tolist() == want[frames]


@pytest.mark.parametrize("merging", ["bipartite", "pairs"])
@pytest.mark.parametrize("frames", [3, 20])
def test_a_call_takes_a_hundred_operations_however_many_frames(frames, merging):
    """Twenty frames of 20 places took 3,025, for lists made at each call and frames merged one by one."""
    control = CorrespondenceAttention(found(frames=frames, k=3), "projected", merging=merging)
    call = called(*inputs(frames=frames))
    control.attention(call, attend)
    with Operations() as seen:
        control.attention(call, attend)
    assert seen.count <= 100


@pytest.mark.parametrize("frames", [(0, 2, 3), (3, 1)])
def test_a_call_of_some_frames_looks_at_matches_in_those_alone(frames):
    """As where another method evaluates a few frames on their own."""
    table, (q, k, v) = found(), inputs(frames=len(frames))
    control = CorrespondenceAttention(table, "projected", merge_ratio=0)
    lists = []
    for f in frames:
        matches = table.matches(f)
        others = [(at, j) for at, j in enumerate(frames) if j != f]
        lists.append([[(at, p) for at, j in others for p in matches[j, i].tolist()] for i in range(20)])
    got = control.attention(replace(called(q, k, v), frames=frames), attend)
    assert_close(got, by_hand(q, k, v, lists))


def test_a_call_of_one_frame_has_nowhere_to_look():
    call = replace(called(*inputs(frames=1)), frames=(2,))
    assert torch.equal(CorrespondenceAttention(found()).attention(call, attend), attend(call))


# ---- in a run -------------------------------------------------------------------------------------------------------


@pytest.fixture
def latents():
    return make_latents()


@pytest.fixture
def table(tiny_image, latents):
    return correspondence(tiny_image, latents)


@pytest.fixture
def run(tiny_image, latents):
    trajectory = invert(tiny_image, latents, tiny_image.text.embed("a red square"), steps=2)
    target = tiny_image.text.embed("a blue circle")
    return lambda plan=PLAIN, **options: edit(tiny_image, trajectory, target, plan=plan, guidance=2, **options)


def test_strength_0_is_the_plain_edit_bit_for_bit(run, table):
    assert torch.equal(run(PLAIN.then(CorrespondenceAttention(table, strength=0))), run())


@pytest.mark.parametrize(
    "numbers", [{}, {"tokens": "projected"}, {"levels": "all"}, {"merge_ratio": 0}, {"merging": "pairs"}]
)
def test_it_changes_the_edit_and_is_the_same_twice(run, table, numbers):
    plan = PLAIN.then(CorrespondenceAttention(table, **numbers)).then(SpatioTemporalAttention())
    got = run(plan)
    assert torch.equal(got, run(plan))
    assert not torch.equal(got, run(PLAIN.then(SpatioTemporalAttention())))


def test_it_guides_an_inversion_too(tiny_image, latents, table):
    plan = PLAIN.then(CorrespondenceAttention(table)).then(SpatioTemporalAttention())
    prompt = tiny_image.text.embed("a red square")
    plain, guided = (invert(tiny_image, latents, prompt, steps=2, plan=p) for p in (PLAIN, plan))
    assert not torch.equal(plain.latents, guided.latents)


@pytest.mark.parametrize("numbers", [{}, {"tokens": "projected"}, {"tokens": "projected", "strength": 0.5}])
def test_before_or_after_spatio_temporal_attention_is_the_same(run, table, numbers):
    """Keys are chosen next to the softmax and an output is changed after it, however they are wired."""
    guided, every = CorrespondenceAttention(table, **numbers), SpatioTemporalAttention()
    assert torch.equal(run(PLAIN.then(every).then(guided)), run(PLAIN.then(guided).then(every)))


def test_a_correspondence_of_another_clip_is_refused(tiny_image, run):
    other = correspondence(tiny_image, make_latents(4))
    with pytest.raises(ValueError, match=r"for 4 frames on a grid of 6x10, and the clip has 3 frames on 6x10"):
        run(PLAIN.then(CorrespondenceAttention(other)))
    other = correspondence(tiny_image, make_latents(size=(6, 8)))
    with pytest.raises(ValueError, match=r"on a grid of 6x8, and the clip has 3 frames on 6x10: connect one made"):
        run(PLAIN.then(CorrespondenceAttention(other)))


@pytest.mark.parametrize("levels", ["finest", "all"])
def test_in_an_inversion_too(tiny_image, latents, levels):
    other = correspondence(tiny_image, make_latents(size=(6, 8)))
    plan = PLAIN.then(CorrespondenceAttention(other, levels=levels))
    with pytest.raises(ValueError, match=r"the correspondence is for 3 frames on a grid of 6x8"):
        invert(tiny_image, latents, tiny_image.text.embed("a dog"), steps=2, plan=plan)


def test_a_correspondence_of_another_model_is_refused(run, table):
    with pytest.raises(ValueError, match=r"found with another model \(fingerprint other\)"):
        run(PLAIN.then(CorrespondenceAttention(replace(table, model="other"))))


def test_a_model_without_attention_there_is_refused(run, table):
    """The tiny model has three levels."""
    coarse = found((1, 2), 3, level=3)
    with pytest.raises(ValueError, match="has no self-attention at the resolution of this correspondence"):
        run(PLAIN.then(CorrespondenceAttention(replace(coarse, model=table.model))))


def test_a_model_without_attention_at_its_finest_level_says_which_option_helps(tmp_path):
    folder = make_folder(tmp_path / "coarse", kind="image", blocks=COARSE_ONLY)
    backbone = load_backbone(folder, dtype="float32", memory=PlainMemory("cpu"))
    fine = correspondence(backbone, make_latents(), up_block=3)
    trajectory = invert(backbone, make_latents(), backbone.text.embed("a red square"), steps=2)
    with pytest.raises(ValueError, match=r"no self-attention at the resolution of this .* choose levels 'all', or an"):
        edit(backbone, trajectory, trajectory.prompt, plan=PLAIN.then(CorrespondenceAttention(fine)))
    plan = PLAIN.then(CorrespondenceAttention(fine, levels="all"))
    assert edit(backbone, trajectory, trajectory.prompt, plan=plan).isfinite().all()


def test_chunks_of_frames_are_refused(run, table):
    with pytest.raises(ValueError, match="Correspondence Attention looks at all 3 frames together"):
        run(PLAIN.then(CorrespondenceAttention(table)), chunk_frames=1)


@pytest.mark.parametrize(
    ("numbers", "match"),
    [
        ({"strength": -0.1}, r"want a strength in 0..1, got -0.1"),
        ({"strength": 1.1}, r"want a strength in 0..1, got 1.1"),
        ({"merge_ratio": 1.0}, r"want a merge ratio from 0 \(off\) to under 1, got 1.0"),
        ({"merge_ratio": -0.5}, "want a merge ratio from 0"),
        ({"tokens": "keys"}, "no tokens 'keys': want one of output, projected"),
        ({"levels": "coarse"}, "no levels 'coarse': want one of finest, all"),
        ({"merging": "thirds"}, "no merging 'thirds': want one of bipartite, pairs"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(numbers, match):
    with pytest.raises(ValueError, match=match):
        PLAIN.then(CorrespondenceAttention(found(), **numbers))
