import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from weft.backbones.diffusers.loading import load_backbone
from weft.backbones.diffusers.text import prompt_of
from weft.backbones.lora import adapt
from weft.backbones.memory import PlainMemory
from weft.engine.edit import edit
from weft.engine.inversion import add_noise
from weft.engine.monitor import Monitor
from weft.engine.plan import PLAIN
from weft.methods.adaptation import MARGINS, Ranges, curve, fit, lines, transform
from weft.methods.candidates import candidates, choose
from weft.tests.numerics import assert_close

STILL = Ranges(0, 0, 0, 1)


def picture(seed=0, size=(12, 20)):
    """[1, H, W, 3], smooth, with a bright spot."""
    noise = torch.rand(1, 3, 3, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, size, mode="bilinear").movedim(1, -1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- transforms -----------------------------------------------------------------------------------------------------


def test_no_transform_gives_the_picture_back():
    assert_close(transform(picture(), STILL, generator()), picture(), torch.float16)


@pytest.mark.parametrize("ranges", [Ranges(), Ranges(40, 0.2, 0, 0.5)])
def test_both_pictures_of_a_pair_are_moved_alike(ranges):
    one, other = transform(torch.cat([picture(), picture()]), ranges, generator())
    assert torch.equal(one, other)
    assert not torch.equal(one[None], transform(picture(), ranges, generator(1)))
    assert torch.equal(one[None], transform(picture(), ranges, generator()))


def spot(x, y, size=(41, 61)):
    """A Gaussian at (x, y) pixels from the middle, and where a picture has one."""
    rows, columns = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in size), indexing="ij")
    return torch.exp(-((columns - x).square() + (rows - y).square()) / 8)[None, ..., None].expand(-1, -1, -1, 3)


def place(pictures):
    weight = pictures[0, ..., 0].clamp(min=0.05) - 0.05
    rows, columns = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in weight.shape), indexing="ij")
    return torch.tensor([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()


@pytest.mark.parametrize(
    "ranges",
    [Ranges(30, 0, 0, 1), Ranges(0, 0.2, 0, 1), Ranges(0, 0, 30, 1), Ranges(0, 0, 0, 0.6), Ranges(20, 0.1, 15, 0.8)],
    ids=["rotation", "translation", "shear", "crop", "all"],
)
def test_a_point_goes_where_the_formula_says(ranges):
    """Rotation and shear act in pixels, whatever the picture's shape; the crop is enlarged to the old size."""
    start, half = torch.tensor([8.0, -6.0]), torch.tensor([61.0, 41.0]) / 2
    for seed in range(4):
        draw = torch.rand(7, generator=generator(seed), dtype=torch.float64) * 2 - 1
        a, s = math.radians(ranges.rotation) * draw[0], math.radians(ranges.shear) * draw[1]
        slanted = torch.tensor([start[0] + s.tan() * start[1], start[1]])
        turned = torch.tensor(
            [a.cos() * slanted[0] - a.sin() * slanted[1], a.sin() * slanted[0] + a.cos() * slanted[1]]
        )
        moved = turned + 2 * ranges.translation * draw[2:4] * half
        share = ranges.crop + (1 - ranges.crop) * (draw[4] + 1) / 2
        want = (moved - (1 - share) * draw[5:7] * half) / share
        got = place(transform(spot(*start.tolist()), ranges, generator(seed)))
        assert (got - want).norm() < 0.25


def test_the_papers_ranges_are_the_default():
    assert Ranges() == Ranges(rotation=5, translation=0.05, shear=10, crop=0.75)
    with pytest.raises(ValueError, match=r"crop in 0\.\.1"):
        Ranges(crop=0)


def test_edges_are_mirrored():
    white = torch.ones(1, 8, 8, 3)
    assert_close(transform(white, Ranges(40, 0.3, 20, 1), generator()), white)


# ---- candidates -----------------------------------------------------------------------------------------------------


def test_each_candidate_is_what_its_seed_gives(tiny_instruct):
    instruction, progress = tiny_instruct.text.embed("make it blue"), []

    class Count(Monitor):
        def progress(self, done, total, preview=None):
            progress.append((done, total))

    got = candidates(tiny_instruct, picture(), instruction, count=3, seed=5, steps=2, monitor=Count())
    assert got.shape == (3, 12, 20, 3)
    assert progress == [(i, 6) for i in range(1, 7)]
    trajectory = add_noise(
        tiny_instruct, tiny_instruct.codec.encode(picture()), tiny_instruct.text.embed(""), steps=2, seed=6
    )
    want = tiny_instruct.codec.decode(edit(tiny_instruct, trajectory, instruction))
    assert_close(choose(got, 1), want, torch.float16)
    assert not torch.equal(got[0], got[2])


def test_what_cannot_be_chosen_is_refused(tiny_instruct):
    instruction = tiny_instruct.text.embed("make it blue")
    with pytest.raises(ValueError, match="want at least 1 candidate, got 0"):
        candidates(tiny_instruct, picture(), instruction, count=0)
    with pytest.raises(ValueError, match=r"want one picture \[1, H, W, 3\] as frame, got \[2, 12, 20, 3\]"):
        candidates(tiny_instruct, picture().repeat(2, 1, 1, 1), instruction)
    with pytest.raises(ValueError, match="there are candidates 0 to 3, and no 4"):
        choose(torch.zeros(4, 2, 2, 3), 4)


# ---- training -------------------------------------------------------------------------------------------------------


def trained(backbone, **options):
    training = partial(
        fit, source=picture(0), edited=picture(1), instruction=backbone.text.embed("make it blue"), **options
    )
    return adapt(backbone, training, rank=4)


def test_the_loss_falls(tiny_instruct):
    """Against a training that hardly moves, step by step: the same noise at the same levels."""
    (_, _, still), (_, _, losses) = (
        trained(tiny_instruct, steps=40, rate=rate, ranges=STILL, drop=0) for rate in (1e-12, 1e-2)
    )
    assert losses[0] == still[0]
    assert sum(losses[20:]) < 0.97 * sum(still[20:])


def test_training_is_deterministic_and_changes_no_other_weights(tiny_instruct):
    before = [p.clone() for p in tiny_instruct.denoiser.network.parameters()]
    first, second = (trained(tiny_instruct, steps=3) for _ in range(2))
    assert first[2] == second[2]
    assert first[0].denoiser.fingerprint == second[0].denoiser.fingerprint
    assert trained(tiny_instruct, steps=3, seed=1)[2] != first[2]
    assert all(torch.equal(a, b) for a, b in zip(before, tiny_instruct.denoiser.network.parameters()))
    assert not any(p.requires_grad for p in first[0].denoiser.network.parameters())


def test_it_trains_where_comfyui_runs_nodes(tiny_instruct):
    want = trained(tiny_instruct, steps=2)[2]
    with torch.inference_mode():
        assert trained(tiny_instruct, steps=2)[2] == want


def test_text_and_picture_are_left_out_as_often_as_told(tiny_instruct, monkeypatch):
    seen, predict = [], type(tiny_instruct.denoiser).predict

    def watch(self, evaluation, plan=PLAIN):
        seen.append((evaluation.prompts[0].text, bool(evaluation.image.any())))
        return predict(self, evaluation, plan)

    monkeypatch.setattr(type(tiny_instruct.denoiser), "predict", watch)
    trained(tiny_instruct, steps=60, drop=0.25)
    counts = {kind: seen.count(kind) for kind in set(seen)}
    assert set(counts) == {("", True), ("", False), ("make it blue", False), ("make it blue", True)}
    assert min(counts.values()) >= 6
    seen.clear()
    trained(tiny_instruct, steps=10, drop=0)
    assert set(seen) == {("make it blue", True)}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_network_in_half_precision_learns_as_one_in_float32(tiny_instruct, tiny_instruct_folder, dtype):
    half = load_backbone(tiny_instruct_folder, dtype=dtype, memory=PlainMemory("cpu"))
    training = partial(fit, source=picture(0), edited=picture(1), steps=6, drop=0.0, rate=1e-3)
    learned = []
    for backbone in (tiny_instruct, half):
        instruction = backbone.text.embed("make it blue")
        adapted, adapter, losses = adapt(backbone, partial(training, instruction=instruction), rank=2)
        assert all(math.isfinite(loss) for loss in losses)
        assert adapted.denoiser.network.dtype == backbone.denoiser.network.dtype
        assert {p.dtype for n, p in adapted.denoiser.network.named_parameters() if "lora_" in n} == {torch.float32}
        learned.append(torch.cat([w.flatten() for n, w in sorted(adapter.weights.items()) if "lora_B" in n]))
    want, got = learned
    assert torch.nn.functional.cosine_similarity(got, want, dim=0) > 0.8  # AdamW's steps have the size of the rate


def test_parameters_that_would_lose_the_steps_are_refused(tiny_instruct):
    lossy = [torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))]
    with pytest.raises(ValueError, match=r"want parameters in float32, got torch\.bfloat16: steps as small as 0\.0001"):
        fit(tiny_instruct, lossy, picture(), picture(1), tiny_instruct.text.embed("x"))


def test_a_cancel_keeps_the_last_whole_step(tiny_instruct):
    class Cancelled(Exception):
        pass

    class Cancel(Monitor):
        done = 0

        def progress(self, done, total, preview=None):
            self.done = done

        def check(self):
            if self.done == 2:
                raise Cancelled

    kept, options = [], {"steps": 5, "ranges": STILL}
    training = partial(
        fit, source=picture(0), edited=picture(1), instruction=tiny_instruct.text.embed("make it blue"), **options
    )
    with pytest.raises(Cancelled):
        adapt(tiny_instruct, partial(training, monitor=Cancel()), rank=4, rescue=kept.append)
    stopped = []
    with pytest.raises(ZeroDivisionError):
        adapt(tiny_instruct, partial(training, monitor=_After(2)), rank=4, rescue=stopped.append)
    assert all(torch.equal(w, stopped[0].weights[n]) for n, w in kept[0].weights.items())


class _After(Monitor):
    def __init__(self, steps):
        self.steps = steps

    def progress(self, done, total, preview=None):
        if done == self.steps:
            raise ZeroDivisionError


def test_a_loss_that_is_no_number_stops_the_training(tiny_instruct, monkeypatch):
    kind = type(tiny_instruct.denoiser)
    predict = kind.predict
    monkeypatch.setattr(kind, "predict", lambda self, *about: math.nan * predict(self, *about))
    kept = []
    with pytest.raises(ValueError, match="the training became NaN or infinite at step 1: lower the learning rate"):
        adapt(
            tiny_instruct,
            partial(fit, source=picture(), edited=picture(1), instruction=tiny_instruct.text.embed("x"), steps=2),
            rescue=kept.append,
        )
    assert all(w.isfinite().all() for w in kept[0].weights.values())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"source": torch.rand(2, 12, 20, 3)}, "want one picture .* as source"),
        ({"edited": torch.rand(12, 20, 3)}, "want one picture .* as edited picture"),
        ({"edited": torch.rand(1, 20, 12, 3)}, "source and edited picture differ in size"),
        ({"steps": 0}, "want 1 step or more"),
        ({"rate": 0.0}, "a rate over 0"),
        ({"rate": math.nan}, "a rate over 0"),
        ({"drop": 0.5}, r"drop in 0\.\.1/3"),
    ],
)
def test_what_makes_no_sense_is_refused(tiny_instruct, changes, match):
    options = {"source": picture(), "edited": picture(1), "instruction": tiny_instruct.text.embed("x"), "steps": 1}
    with pytest.raises(ValueError, match=match):
        fit(tiny_instruct, [], **{**options, **changes})


def test_instructions_and_models_that_do_not_fit_are_refused(tiny_instruct, tiny_image):
    text = tiny_instruct.text.embed("make it blue")
    with pytest.raises(ValueError, match="'make it blue' was encoded by another model"):
        fit(tiny_instruct, [], picture(), picture(1), replace(text, encoder="other"))
    two = prompt_of(text.cond["embedding"].repeat(2, 1, 1), text.text, text.encoder)
    with pytest.raises(ValueError, match="want one instruction for the pair, got one for each of 2 frames"):
        fit(tiny_instruct, [], picture(), picture(1), two)
    with pytest.raises(ValueError, match="'tiny-image' is not given the source's picture"):
        fit(tiny_image, [], picture(), picture(1), tiny_image.text.embed("x"))


# ---- the curve ------------------------------------------------------------------------------------------------------


def test_the_curve_is_drawn_from_the_first_step_to_the_last():
    shown = lines([1.0, 0.5, 0.0], (11, 21), smooth=0.0)
    assert shown.shape == (1, 11, 21, 3)
    dark = shown[0, ..., 0] < 0.5
    assert dark.any(0).all(), "a column without a line"
    assert dark[0, 0]
    assert dark[10, 20]
    assert dark[5, 9:12].any()
    assert lines([0.0], (11, 21), 0.9).isfinite().all()


def test_the_curve_has_axes_with_numbers_on_both():
    small, large, long = curve([1.0, 0.5, 0.25]), curve([7.0, 3.5, 1.75]), curve([1.0, *[0.5] * 998, 0.25])
    assert small.shape == (1, 256, 512, 3)
    left, bottom = (slice(None), slice(MARGINS["left"] - 4)), slice(256 - MARGINS["bottom"] + 5, None)
    assert (small[0][left] < 0.5).any()
    assert (small[0][bottom] < 0.5).any()
    assert not torch.equal(small[0][left], large[0][left]), "the highest loss is another"
    assert torch.equal(small[0][bottom], large[0][bottom])
    assert not torch.equal(small[0][bottom], long[0][bottom]), "the last step is another"
    inside = slice(MARGINS["top"], 256 - MARGINS["bottom"]), slice(MARGINS["left"] + 1, 400)
    assert torch.equal(small[0][inside], large[0][inside]), "the same shape, on another scale"
