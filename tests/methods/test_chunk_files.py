"""Parts of a clip in files: any order, any retry, and what is wrong is named."""

import pytest
import torch
from safetensors.torch import save_file

from weft.methods.chunk_files import is_part, merge_files, part_name, save_part
from weft.methods.chunks import plan_chunks, select

FRAMES, COUNT = 9, 3
PLAN = plan_chunks(FRAMES, COUNT, group=2)


def clip(seed=0, height=8):
    return torch.rand(FRAMES, height, 12, 3, generator=torch.Generator().manual_seed(seed))


def save(folder, index, plan=PLAN, frames=None):
    part, _, chunk = select(plan, index, clip() if frames is None else frames)
    return save_part(part, chunk, folder, "cat")[0]


@pytest.fixture
def files(tmp_path):
    return [save(tmp_path, index) for index in range(COUNT)]


def test_the_clip_comes_back_to_the_bit_in_any_order(files):
    assert [f.name for f in files] == [f"cat.part_{i}_of_3.safetensors" for i in range(COUNT)]
    for order in ((0, 1, 2), (2, 0, 1)):
        assert torch.equal(merge_files(PLAN, [files[i] for i in order]), clip())


def test_a_part_that_is_made_again_takes_its_place(files, tmp_path):
    save(tmp_path, 1, frames=clip(1))
    with pytest.raises(ValueError, match=r"chunk [012] is not what the others are parts of"):
        merge_files(PLAN, files)
    again = save(tmp_path, 1)
    assert again == files[1]
    assert torch.equal(merge_files(PLAN, files), clip())
    assert sorted(p.name for p in tmp_path.iterdir()) == [f.name for f in files]


def test_names_of_parts():
    name = part_name("a.b (1)", PLAN.chunk(2))
    assert is_part(name, "a.b (1)")
    assert not is_part(name, "b (1)")
    assert not is_part(name.replace("2_of", "x_of"), "a.b (1)")
    assert not is_part("cat.safetensors", "cat")


def cut(files, folder):
    files[1].write_bytes(files[1].read_bytes()[:-10])


def something_else(files, folder):
    save_file({"frames": torch.rand(4, 8, 12, 3)}, files[1])


def not_pictures(files, folder):
    save_file({"frames": torch.rand(4)}, files[1])


def not_numbers(files, folder):
    save(folder, 1, frames=clip() * float("nan"))


def other_size(files, folder):
    save(folder, 1, frames=clip(height=10))


def other_plan(files, folder):
    save(folder, 1, plan_chunks(FRAMES, COUNT, group=3))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut, "'cat.part_1_of_3.safetensors' is not a whole safetensors file"),
        (something_else, "'cat.part_1_of_3.safetensors' is not a part: want a file that Save Part wrote"),
        (not_pictures, "'cat.part_1_of_3.safetensors' is not a part: want a file that Save Part wrote"),
        (not_numbers, "'cat.part_1_of_3.safetensors' holds NaN or infinity"),
        (other_size, r"'cat.part_1_of_3.safetensors' has frames \[10, 12\], and the others \[8, 12\]"),
        (other_plan, "part 1 of 3 was cut by another plan"),
        (lambda files, folder: files.pop(1), "no part 1 of 3"),
        (lambda files, folder: files.clear(), "there are no files of parts, and 3 are wanted"),
        (lambda files, folder: files.append(files[1].rename(folder / "copy")), "no part 'cat.part_1_of_3.safetensors'"),
    ],
)
def test_what_is_wrong_is_named(files, tmp_path, spoil, words):
    spoil(files, tmp_path)
    with pytest.raises(ValueError, match=words):
        merge_files(PLAN, files)


def test_a_full_disk_leaves_the_part_that_was_there(files, tmp_path, monkeypatch):
    import weft.engine.tensor_file as tensor_file

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_file.os, "fsync", full)
    with pytest.raises(ValueError, match=r"part 1 could not be saved: .*No space left"):
        save(tmp_path, 1, frames=clip(1))
    assert torch.equal(merge_files(PLAN, files), clip())
    assert sorted(p.name for p in tmp_path.iterdir()) == [f.name for f in files]
