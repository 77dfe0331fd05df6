from dataclasses import dataclass, replace

import pytest
import torch

from weft.engine.edit import edit
from weft.engine.inversion import invert
from weft.engine.plan import PLAIN, Control, EditPlan, Needs
from weft.engine.words import NEGATIVE, POSITIVE, SOURCE
from weft.methods.injection import FeatureInjection
from weft.methods.token_flow import Keyframes, TokenFlow, with_injection
from weft.tests.methods.calls import attend, attended, call_of, evaluation, shared, tensors
from weft.tests.numerics import assert_close
from weft.tests.tiny import make_latents

H, N, D, STEPS = 2, 6, 5, 3
ROWS = (SOURCE, NEGATIVE, POSITIVE)


def flow(**numbers):
    """TokenFlow with no injection."""
    return PLAIN.then(TokenFlow(**numbers))


@dataclass(frozen=True)
class Extended(Control):
    """Every frame of the edit's rows attends to all frames, written with explicit maps."""

    def needs(self):
        return Needs(source=True)

    def attention(self, call, attend):
        if call.site.kind != "spatial":
            return attend(call)
        out, frames = [], call.q.shape[1]
        for row, name in enumerate(call.rows):
            for frame in range(frames):
                seen = [frame] if name == SOURCE else range(frames)
                keys, values = (torch.cat([x[row, f] for f in seen], 1) for x in (call.k, call.v))
                out.append((call.q[row, frame] @ keys.mT * call.scale).softmax(-1) @ values)
        return torch.stack(out).view_as(call.v)


@pytest.fixture
def trajectory(tiny_image64):
    return invert(tiny_image64, make_latents(5), tiny_image64.text.embed("a red square"), steps=STEPS)


@pytest.fixture
def run(tiny_image64, trajectory):
    target = tiny_image64.text.embed("a blue circle")

    def run(plan=PLAIN, trajectory=trajectory, **options):
        return edit(tiny_image64, trajectory, target, plan=plan, guidance=2, **options)

    return run


def test_with_every_frame_a_keyframe_it_is_attention_over_all_frames(run):
    got = run(flow(batch=1, blend="linear"))
    assert_close(got, run(PLAIN.then(Extended())))
    assert not torch.allclose(got, run())


def carried(control, keys, frames, tokens, outs, source):
    """What frames [F] get from keyframes, token by token."""
    want = torch.zeros(len(ROWS), frames, H, N, D, dtype=torch.float64)
    for f in range(frames):
        m = f // control.batch
        for i in range(N):
            nearest = {}
            for n in {m, max(m - 1, 0)}:
                cosines = [torch.cosine_similarity(source[f, i], tokens[n, j], dim=0) for j in range(N)]
                nearest[n] = outs[:, n, :, int(torch.stack(cosines).argmax())]
            w = control.weight(f, frames) if m else 1
            want[:, f, :, i] = w * nearest[m] + (1 - w) * nearest[max(m - 1, 0)]
    return want


@pytest.mark.parametrize("blend", ["sigmoid", "linear"])
def test_tokens_take_what_the_nearest_of_two_keyframes_got(blend):
    control, frames, keys = TokenFlow(batch=3, blend=blend), 7, 3
    kept = Keyframes(frames, gathering=True)
    q, k, v = tensors(3, keys, H, N, D)
    call = call_of(q, k, v, ROWS)
    outs = control.attention(shared(call, control, kept), attend)
    joined = [x[1:].transpose(1, 2).flatten(2, 3) for x in (q, k, v)]
    assert_close(outs[1:].transpose(1, 2).flatten(2, 3), attended(*joined))
    assert_close(outs[:1], attended(q[:1], k[:1], v[:1]))  # the source sees its own frame

    here = call_of(*tensors(3, frames, H, N, D), ROWS)
    got = control.attention(shared(here, control, replace(kept, gathering=False)), None)
    assert_close(got, carried(control, keys, frames, call.tokens[0], outs, here.tokens[0]))


def test_the_own_keyframe_weighs_more_by_the_released_rule():
    assert [round(TokenFlow(batch=4).weight(f, 8), 4) for f in range(4, 8)] == [0.6225, 0.6792, 0.7311, 0.6971]
    assert [TokenFlow(batch=4, blend="linear").weight(f, 8) for f in (4, 6)] == [0.5, 1.0]
    assert [TokenFlow(batch=1, blend="linear").weight(f, 3) for f in (1, 2)] == [1.0, 1.0]
    assert TokenFlow(batch=4, blend="linear").weight(5, 6) == 1.0  # of a batch of two the middle is the second


@pytest.mark.parametrize(("frames", "batch"), [(1, 8), (5, 8), (8, 8), (9, 8), (16, 8), (7, 3)])
def test_every_batch_has_a_keyframe_whatever_the_length(frames, batch):
    drawn = {tuple(TokenFlow(batch=batch).keyframes(frames, step)) for step in range(50)}
    for at in drawn:
        assert [f // batch for f in at] == list(range(-(-frames // batch)))
    assert {f for at in drawn for f in at} == set(range(frames))  # every frame gets its turn


def test_keyframes_depend_on_the_seed_and_the_step():
    one = [TokenFlow().keyframes(40, step) for step in range(3)]
    assert one == [TokenFlow().keyframes(40, step) for step in range(3)]
    assert one[0] != one[1]
    assert one != [TokenFlow(seed=1).keyframes(40, step) for step in range(3)]


@pytest.mark.parametrize("frames", [1, 5])
def test_clips_shorter_than_a_batch_work(tiny_image, frames):
    trajectory = invert(tiny_image, make_latents(frames), tiny_image.text.embed("a"), steps=STEPS)
    plan = with_injection(PLAIN, TokenFlow())
    assert len(edit(tiny_image, trajectory, tiny_image.text.embed("a blue"), plan=plan)) == frames


@pytest.mark.parametrize("chunk", [1, 2])
def test_chunks_of_frames_change_nothing(run, chunk):
    plan = with_injection(PLAIN, TokenFlow(batch=2), feature_steps=2, attention_steps=1)
    assert_close(run(plan, chunk_frames=chunk), run(plan))


def test_a_clip_that_stands_still_stays_still(run, trajectory):
    still = replace(trajectory, latents=trajectory.latents[:, :1].expand_as(trajectory.latents).contiguous())
    got = run(with_injection(PLAIN, TokenFlow(batch=2)), trajectory=still)
    assert_close(got, got[:1].expand_as(got))


def test_injection_is_added_before_it_unless_it_is_0():
    both = with_injection(PLAIN, TokenFlow(batch=4))
    assert both.controls == (FeatureInjection(40, 25), TokenFlow(batch=4))
    assert with_injection(PLAIN, TokenFlow(), feature_steps=0, attention_steps=0).controls == (TokenFlow(),)
    some = with_injection(PLAIN, TokenFlow(), feature_steps=3, attention_steps=0)
    assert some.controls[0] == FeatureInjection(3, 0)


def test_injected_queries_and_keys_act_in_the_keyframes_pass(run):
    both = with_injection(PLAIN, TokenFlow())
    assert not torch.allclose(run(both), run(with_injection(PLAIN, TokenFlow(), attention_steps=0)))
    assert torch.equal(run(both), run(EditPlan(both.controls[::-1])))  # however they are wired


def test_an_inversion_under_it_is_the_plain_one(tiny_image, trajectory):
    latents = tiny_image.codec.unscale(trajectory.latents[0])
    one, other = (invert(tiny_image, latents, trajectory.prompt, steps=STEPS, plan=p) for p in (PLAIN, flow()))
    assert_close(one.latents, other.latents)


def test_other_attention_and_other_passes_are_left_alone():
    call = call_of(*tensors(3, 2, H, N, D), ROWS)
    assert torch.equal(TokenFlow().attention(call, attend), attend(call))
    assert TokenFlow().evaluate(evaluation((SOURCE,), 2), lambda e: e.latents).shape[0] == 1


def test_models_whose_frames_see_each_other_are_refused(tiny):
    trajectory = invert(tiny, make_latents(), tiny.text.embed("a"), steps=STEPS)
    with pytest.raises(ValueError, match="'tiny' looks at all frames together: use an image or instruction model"):
        edit(tiny, trajectory, trajectory.prompt, plan=flow())


@pytest.mark.parametrize(
    ("numbers", "match"),
    [
        ({"batch": 0}, "want batches of 1 or more frames, got 0"),
        ({"blend": "cubic"}, "no blend 'cubic': want one of sigmoid, linear"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(numbers, match):
    with pytest.raises(ValueError, match=match):
        PLAIN.then(TokenFlow(**numbers))


def test_a_negative_number_of_steps_is_refused():
    with pytest.raises(ValueError, match="feature_steps must be 0 or more steps, got -1"):
        with_injection(PLAIN, TokenFlow(), feature_steps=-1)


def test_what_frames_ask_of_keyframes_is_made_once_a_step():
    control, frames, keys = TokenFlow(batch=2), 4, 2
    kept = Keyframes(frames, gathering=True)
    control.attention(shared(call_of(*tensors(3, keys, H, N, D), ROWS), control, kept), attend)
    carrying = replace(kept, gathering=False)
    for _ in range(3):
        control.attention(shared(call_of(*tensors(3, frames, H, N, D), ROWS), control, carrying), None)
    assert len(carrying.asks) == 1
