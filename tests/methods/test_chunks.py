import subprocess
import sys

import pytest
import torch

from weft.methods.chunks import AGREE, merge, plan_chunks, read_order, select
from weft.tests.conftest import ROOT
from weft.tests.numerics import assert_close

FRAMES = 7


def pictures(frames=FRAMES):
    """Frames that tell their number."""
    return torch.arange(frames).float().view(-1, 1, 1, 1).expand(-1, 2, 3, 3)


def gathered(plan, order):
    """What comes from the workers, one after another, if they change nothing."""
    return torch.cat([select(plan, i, pictures(plan.frames))[0] for i in order])


@pytest.mark.parametrize("chunks", range(1, FRAMES + 1))
def test_chunks_cover_the_clip_once_in_equal_parts(chunks):
    plan = plan_chunks(FRAMES, chunks, group=3)
    owned = [plan.chunk(i).own for i in range(chunks)]
    assert [f for own in owned for f in own] == list(range(FRAMES))
    assert max(map(len, owned)) - min(map(len, owned)) <= 1


def test_every_worker_has_the_group_and_knows_where_it_is():
    plan = plan_chunks(FRAMES, 3, group=3)
    for index in range(3):
        chunk = plan.chunk(index)
        assert tuple(chunk.frames[g] for g in chunk.group) == plan.group == (0, 3, 6)
        assert list(chunk.frames) == sorted({*chunk.own, *plan.group})


def test_a_group_keeps_its_order():
    chunk = plan_chunks(FRAMES, 2, group=(5, 0)).chunk(0)
    assert [chunk.frames[g] for g in chunk.group] == [5, 0]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_merging_undoes_cutting_in_any_order(order):
    plan = plan_chunks(FRAMES, 3, group=2)
    assert torch.equal(merge(plan, gathered(plan, order), order), pictures())


def test_each_frame_comes_from_the_worker_that_owns_it():
    plan, step = plan_chunks(4, 2, group=(3, 0)), AGREE / 2  # workers round a little differently
    parts = [torch.full((len(plan.chunk(i).frames), 2, 3, 3), i * step) for i in range(2)]
    assert merge(plan, torch.cat(parts))[:, 0, 0, 0].tolist() == torch.tensor([0, 0, step, step]).tolist()


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 0, 2), (1, 1, 2)], ids=["swapped", "doubled", "doubled again"])
def test_chunks_that_are_not_what_they_are_said_to_be_show_at_the_group(order):
    plan = plan_chunks(9, 3, group=(0, 4))
    with pytest.raises(ValueError, match=r"chunk \d is not what the others are parts of.* differ by \d+\.\d of 255"):
        merge(plan, gathered(plan, order))


def test_masks_are_cut_too():
    plan, masks = plan_chunks(FRAMES, 3, group=1), torch.rand(FRAMES, 2, 3)
    frames, mask, chunk = select(plan, 2, pictures(), masks)
    assert torch.equal(mask, masks[list(chunk.frames)])
    assert torch.equal(frames, pictures()[list(chunk.frames)])
    assert torch.equal(select(plan, 2, pictures(), masks[:1])[1], masks[:1])
    assert torch.equal(select(plan, 2, pictures())[1], torch.ones(1, 2, 3))


def test_orders_are_read():
    assert read_order("2, 0 1") == [2, 0, 1]
    assert read_order("  ") is None
    with pytest.raises(ValueError, match="want the numbers of the chunks, as in '2 0 1', got 'all'"):
        read_order("all")


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda plan: plan_chunks(7, 8), "want 1 to 7 chunks, one frame each at least, got 8"),
        (lambda plan: plan_chunks(7, 2, group=8), "want a group of 1 to 7 frames"),
        (lambda plan: plan_chunks(7, 2, group=(1, 9)), r"the group wants frames \[9\]"),
        (lambda plan: plan.chunk(3), "there are chunks 0 to 2, and no 3"),
        (lambda plan: select(plan, 0, pictures(5)), "planned for 7 frames and the clip has 5"),
        (lambda plan: select(plan, 0, pictures(), torch.ones(3, 2, 3)), "planned for 7 frames and the mask has 3"),
        (lambda plan: merge(plan, pictures()), "the 3 chunks have 11 frames with those of the group, and 7 came"),
        (
            lambda plan: merge(plan, pictures(), [0, 0, 1]),
            r"want every chunk once, 0 to 2 in any order, got \[0, 0, 1\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call(plan_chunks(7, 3, group=2))


WORKER = """
import sys
import torch
from weft.backbones.diffusers.loading import load_backbone
from weft.backbones.memory import PlainMemory
from weft.engine.edit import edit
from weft.engine.inversion import add_noise
from weft.engine.plan import PLAIN
from weft.methods.chunks import plan_chunks
from weft.methods.gather_swap import GatherSwap
from weft.tests.tiny import make_latents

folder, out, frames, chunks, noise, *indices = sys.argv[1:]
model = load_backbone(folder, dtype="float32", memory=PlainMemory("cpu"))
torch.nn.Module.to(model.denoiser.network, torch.float64)
clip, cut = make_latents(int(frames), (5, 9)), plan_chunks(int(frames), int(chunks), group=3)
for index in indices:
    chunk = cut.chunk(int(index))
    trajectory = add_noise(
        model, clip[list(chunk.frames)], model.text.embed(""), steps=3, noise=noise, seed=5, frames=chunk.frames
    )
    plan = PLAIN.then(GatherSwap(group=chunk.group))
    edited = edit(model, trajectory, model.text.embed("make it blue"), plan=plan, chunk_frames=2)
    torch.save(edited, f"{out}/{chunks}-{index}.pt")
"""


def test_workers_of_their_own_give_what_one_run_gives(tiny_instruct_folder, tmp_path):
    """Three chunks by two processes, out of order, against one chunk by a third; with a noise for each frame."""
    jobs = [("3", "2", "0"), ("3", "1"), ("1", "0")]
    arguments = [str(tiny_instruct_folder), str(tmp_path), str(FRAMES)]
    for chunks, *indices in jobs:
        command = [sys.executable, "-c", WORKER, *arguments, chunks, "per_frame", *indices]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    whole = torch.load(tmp_path / "1-0.pt", weights_only=True)
    order = (1, 2, 0)
    parts = torch.cat([torch.load(tmp_path / f"3-{i}.pt", weights_only=True) for i in order])
    got = merge(plan_chunks(FRAMES, 3, group=3), parts, order)
    assert len(got) == len(whole) == FRAMES
    assert_close(got, whole)
