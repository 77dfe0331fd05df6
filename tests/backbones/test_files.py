import os

import pytest

from weft.backbones.files import found, stamp, walk


@pytest.fixture
def tree(tmp_path):
    """Models here and elsewhere."""
    for name in ("here/model_index.json", "here/unet/b.safetensors", "here/unet/a.safetensors", "far/model_index.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def names(folder):
    return [str(path.relative_to(folder)) for path in walk(folder)]


def test_files_come_in_order_and_hidden_ones_do_not(tree):
    (tree / "here" / "unet" / "._a.safetensors").write_bytes(b"macOS")
    (tree / "here" / ".cache").mkdir()
    (tree / "here" / ".cache" / "x").write_text("x")
    assert names(tree / "here") == ["model_index.json", "unet/a.safetensors", "unet/b.safetensors"]


def test_links_are_followed_and_circles_are_not(tree):
    (tree / "here" / "linked").symlink_to(tree / "far")
    (tree / "here" / "unet" / "again").symlink_to(tree / "far")
    (tree / "here" / "unet" / "up").symlink_to(tree / "here")
    (tree / "far" / "self").symlink_to(tree / "far")
    assert names(tree / "here") == [
        "linked/model_index.json",
        "model_index.json",
        "unet/a.safetensors",
        "unet/again/model_index.json",
        "unet/b.safetensors",
    ]


def test_what_is_not_there_is_empty(tree):
    (tree / "here" / "nothing").symlink_to(tree / "gone")
    assert "nothing" in names(tree / "here")
    assert names(tree / "gone") == names(tree / "far" / "model_index.json") == []


def test_what_would_be_waited_for_and_what_is_no_text_is_left_out(tree):
    os.mkfifo(tree / "here" / "pipe")
    (tree / "here" / os.fsdecode(b"latin-\xe9")).write_text("a name that is no UTF-8")
    assert names(tree / "here") == ["model_index.json", "unet/a.safetensors", "unet/b.safetensors"]


def test_folders_deeper_than_python_calls(tmp_path):
    deep = tmp_path
    for _ in range(1200):
        deep = deep / "d"
        deep.mkdir()
    (deep / "file").write_text("x")
    try:
        assert [path.name for path in walk(tmp_path)] == ["file"]
    finally:  # by hand: pytest's own removal calls itself for every level
        (deep / "file").unlink()
        while deep != tmp_path:
            deep.rmdir()
            deep = deep.parent


def test_a_menu_has_what_is_chosen_below_each_folder_and_the_first_of_one_name(tree):
    menu = found([tree / "here", tree / "far"], lambda file: file.parent if file.suffix == ".json" else None)
    assert menu == {".": tree / "here"}
    assert list(found([tree], lambda file: file)) == sorted(map(str, found([tree], lambda file: file)))


@pytest.mark.parametrize("error", [ValueError("no"), RecursionError("deep"), OSError("gone"), KeyError("x")])
def test_what_cannot_be_looked_at_is_in_no_menu_and_the_others_are(tree, caplog, error):
    def choose(file):
        if file.name == "a.safetensors":
            raise error
        return file if file.suffix == ".safetensors" else None

    assert list(found([tree / "here"], choose)) == ["unet/b.safetensors"]
    assert "a.safetensors" in caplog.text


CHANGES = {
    "written anew, as long as before": lambda t: rewrite(t / "here" / "unet" / "b.safetensors"),
    "another size": lambda t: (t / "here" / "unet" / "b.safetensors").write_text("more than there was before"),
    "a file more": lambda t: (t / "here" / "unet" / "c.safetensors").write_text("c"),
    "a file less": lambda t: (t / "here" / "unet" / "a.safetensors").unlink(),
    "renamed": lambda t: (t / "here" / "unet" / "a.safetensors").rename(t / "here" / "unet" / "c.safetensors"),
    "written behind a link": lambda t: rewrite(t / "far" / "model_index.json"),
    "linked elsewhere": lambda t: relink(t / "here" / "linked", t / "elsewhere"),
}


def rewrite(path):
    old = path.stat()
    path.write_bytes(bytes(old.st_size))
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns + 1000))


def relink(link, to):
    to.mkdir()
    link.unlink()
    link.symlink_to(to)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_stamp_changes_with_any_file_of_the_folder(tree, change):
    (tree / "here" / "linked").symlink_to(tree / "far")
    before = stamp(tree / "here")
    assert stamp(tree / "here") == before
    change(tree)
    assert stamp(tree / "here") != before


def test_a_stamp_of_one_file(tree):
    file = tree / "far" / "model_index.json"
    before = stamp(file)
    assert stamp(file) == before
    rewrite(file)
    assert stamp(file) != before
    file.unlink()
    assert stamp(file) != before
    assert stamp(None) is None
