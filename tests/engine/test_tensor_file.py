import errno

import pytest
import torch

from weft.engine.tensor_file import free_name, in_units, read_tensors, require_writable, write_tensors


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "x.safetensors"
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(1).half()}
    size = write_tensors(path, tensors, {"about": "café"})
    assert size == path.stat().st_size
    back, told = read_tensors(path)
    assert told["about"] == "café"
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"]


def test_an_old_file_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.zeros(1)}, {})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(path, {"a": torch.ones(1)}, {})
    assert torch.equal(read_tensors(path)[0]["a"], torch.zeros(1))
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_what_is_half_there_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.zeros(100)}, {})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"'x\.safetensors' is not a whole safetensors file"):
        read_tensors(path)
    with pytest.raises(ValueError, match=r"no adapter 'y\.safetensors'"):
        read_tensors(tmp_path / "y.safetensors", "adapter")


def test_a_name_that_is_free(tmp_path):
    path = tmp_path / "cat.v1.safetensors"
    assert free_name(path) == path
    path.touch()
    assert free_name(path).name == "cat.v1_2.safetensors"
    (tmp_path / "cat.v1_2.safetensors").touch()
    assert free_name(path).name == "cat.v1_3.safetensors"


@pytest.mark.parametrize("name", ["x" * 300, "a/file/b"])
def test_where_nothing_can_be_written_is_refused_before_the_work(tmp_path, name):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").touch()
    with pytest.raises(ValueError, match="nothing can be saved as"):
        require_writable(tmp_path / f"{name}.safetensors")


def test_looking_whether_it_can_be_written_leaves_nothing(tmp_path):
    require_writable(tmp_path / "new" / "x.safetensors")
    assert not list((tmp_path / "new").iterdir())


def test_sizes_in_words():
    assert [in_units(n) for n in (2**20, 12 * 2**20 + 2**19, 3 * 2**30)] == ["1.0 MB", "12.5 MB", "3.0 GB"]
