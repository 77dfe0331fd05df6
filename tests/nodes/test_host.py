"""ComfyUI's side of a run, with a ComfyUI that does nothing."""

import importlib
import sys
from types import SimpleNamespace

import pytest
import torch


class Bar:
    def __init__(self, total):
        self.shown = []

    def update_absolute(self, done, total, picture):
        self.shown.append((done, total, picture))


@pytest.fixture
def host(monkeypatch):
    """`weft.nodes.host`, loaded beside stand-ins for ComfyUI and forgotten afterwards."""
    page = SimpleNamespace(client_id="me", last_node_id="7", sent=[])
    page.send_sync = lambda *message: page.sent.append(message)
    management = SimpleNamespace(throw_exception_if_processing_interrupted=lambda: None)
    utils = SimpleNamespace(ProgressBar=Bar)
    stand_ins = {
        "comfy": SimpleNamespace(model_management=management, utils=utils),
        "comfy.model_management": management,
        "comfy.utils": utils,
        "server": SimpleNamespace(PromptServer=SimpleNamespace(instance=page)),
        "comfy_api": SimpleNamespace(),
        "comfy_api.v0_0_2": SimpleNamespace(ComfyExtension=object),
    }
    for name, module in stand_ins.items():
        monkeypatch.setitem(sys.modules, name, module)
    with monkeypatch.context() as loading:
        for name in ("weft.nodes", "weft.nodes.host"):
            loading.delitem(sys.modules, name, raising=False)
        yield importlib.import_module("weft.nodes.host")
        for name in ("weft.nodes", "weft.nodes.host"):
            del sys.modules[name]


def test_no_more_frames_are_made_for_the_preview_than_are_shown(host):
    asked = []

    def pictures(latents):
        asked.append(latents.flatten().tolist())
        return torch.linspace(0, 1, len(latents))[:, None, None, None].expand(-1, 6, 10, 3)

    monitor = host.NodeMonitor(2, pictures)
    monitor.progress(1, 2, torch.arange(40.0)[:, None, None, None])
    assert asked == [[0, 6, 11, 17, 22, 28, 33, 39]]
    ((done, total, (kind, strip, _)),) = monitor.bar.shown
    assert (done, total, kind) == (1, 2, "JPEG")
    assert strip.width / strip.height == 4 * 10 / 6
    assert strip.getpixel((0, 0)) == (0, 0, 0)
    assert strip.getpixel((strip.width - 1, 0)) == (255, 255, 255)
    _, told, _ = host.PromptServer.instance.sent[-1]
    assert len(told["frames"]) == 8
    assert all(frame.startswith("data:image/jpeg;base64,") for frame in told["frames"])
    assert len(told["frames"][0]) < 2000


def test_the_page_is_told_each_step_and_its_record_once(host):
    monitor = host.NodeMonitor(3)
    monitor.record(loss=1.5)
    monitor.progress(1, 3)
    monitor.progress(2, 3)
    sent = host.PromptServer.instance.sent
    assert sent[0] == ("weft.run", {"node": "7", "done": 1, "total": 3, "record": {"loss": 1.5}, "frames": []}, "me")
    assert sent[1][1]["record"] is None
