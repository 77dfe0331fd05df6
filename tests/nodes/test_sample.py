"""The sample clip is put where ComfyUI's Load Video looks, and nothing of the user's is overwritten."""

import importlib
import logging
import os
import sys
from types import SimpleNamespace

import pytest

from weft.toyworld import clip


@pytest.fixture
def put(monkeypatch, tmp_path):
    """`put_sample` of a ComfyUI whose input folder is `tmp_path`."""
    monkeypatch.setitem(sys.modules, "folder_paths", SimpleNamespace(get_input_directory=lambda: str(tmp_path)))
    monkeypatch.setitem(sys.modules, "comfy_api.v0_0_2", SimpleNamespace(ComfyExtension=object))
    for name in ("weft.nodes", "weft.nodes.sample"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("weft.nodes.sample").put_sample
    for name in ("weft.nodes", "weft.nodes.sample"):
        sys.modules.pop(name, None)


def test_the_clip_and_nothing_else_is_written(put, tmp_path):
    put()
    assert os.listdir(tmp_path) == [clip.CLIP.name]
    assert (tmp_path / clip.CLIP.name).read_bytes() == clip.CLIP.read_bytes()


def test_a_file_of_that_name_stays(put, tmp_path):
    (tmp_path / clip.CLIP.name).write_bytes(b"mine")
    put()
    assert (tmp_path / clip.CLIP.name).read_bytes() == b"mine"


def test_a_folder_that_is_not_there_is_told_of(put, tmp_path, caplog):
    tmp_path.rmdir()
    with caplog.at_level(logging.WARNING):
        put()
    assert "upload" in caplog.text
    tmp_path.mkdir()
