"""Of a hostile file nothing is run and nothing is fetched, whichever loader gets it: it is refused in words, or loaded
without what is hostile in it."""

import json
import pickle
import shutil
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from weft.backbones.diffusers.loading import load_backbone
from weft.backbones.lora import load_adapter
from weft.backbones.memory import PlainMemory
from weft.engine.trajectory_file import load_trajectory
from weft.tests.conftest import ROOT
from weft.vision.clip import load_clip
from weft.vision.detector import load_detector
from weft.vision.sam import load_segmenter

WEIGHTS = ROOT / "toyworld" / "weights"
PICKLES = [
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
    "model.bin",
    "model.pt",
    "model.ckpt",
    "training_args.bin",
]
CODE = ["evil.py", "modeling_evil.py", "pipeline.py", "tokenization_evil.py", "__init__.py", "conftest.py", "setup.py"]
CLASSES = ["", "Model", "Config", "Tokenizer", "Processor", "ImageProcessor", "ModelForZeroShotObjectDetection"]


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """What hostile content would make. No name is looked up and nothing connected meanwhile."""
    asked, marker = [], tmp_path / "it ran"

    def refuse(*arguments, **_):
        asked.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield marker
    assert not marker.exists(), "hostile content was run"
    assert not asked, "a name was looked up"


def folders(folder):
    """A model's folder, and those of its parts."""
    return [folder, *(p for p in folder.rglob("*") if p.is_dir())]


def pickles_for_weights(folder, marker):
    """Pickles under every name, and nothing else to load."""
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    pickles_beside_weights(folder, marker)


def pickles_beside_weights(folder, marker):
    for place in folders(folder):
        for name in PICKLES:
            (place / name).write_bytes(pickle.dumps({"weight": Evil(marker)}))


def pickles_called_safetensors(folder, marker):
    for file in folder.rglob("*.safetensors"):
        file.write_bytes(pickle.dumps({"weight": Evil(marker)}))


def code_that_configs_ask_for(folder, marker):
    for place in folders(folder):
        for name in CODE:
            (place / name).write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
        for config in place.glob("*.json"):
            told = json.loads(config.read_text())
            if isinstance(told, dict) and ("config" in config.name or "index" in config.name):
                told["auto_map"] = {f"Auto{name}": "evil.Evil" for name in CLASSES}
                config.write_text(json.dumps(told | {"trust_remote_code": True, "custom_pipelines": "evil"}))


def classes_that_configs_name(folder, marker):
    for place in folders(folder):
        (place / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    for config in folder.rglob("*.json"):
        told = json.loads(config.read_text())
        if isinstance(told, dict):
            for key in ("_class_name", "tokenizer_class", "image_processor_type", "processor_class", "model_type"):
                told |= {key: "evil.Evil"} if key in told else {}
            parts = {k: ["evil", "Evil"] for k, v in told.items() if isinstance(v, list) and len(v) == 2}
            config.write_text(json.dumps(told | (parts if config.name == "model_index.json" else {})))


def names_of_other_models(folder, marker):
    for config in folder.rglob("config.json"):
        told = json.loads(config.read_text())
        told |= {"_name_or_path": "somebody/evil", "backbone": "somebody/evil", "use_timm_backbone": True}
        config.write_text(json.dumps(told | {"text_config": "somebody/evil", "vision_config": "somebody/evil"}))


SPOILED = {
    f.__name__: f
    for f in (
        pickles_for_weights,
        pickles_beside_weights,
        pickles_called_safetensors,
        code_that_configs_ask_for,
        classes_that_configs_name,
        names_of_other_models,
    )
}
FOLDERS = {
    "image": lambda folder: load_backbone(folder, dtype="float32", memory=PlainMemory("cpu")),
    "clip": lambda folder: load_clip(folder, memory=PlainMemory("cpu")),
    "detector": lambda folder: load_detector(folder, memory=PlainMemory("cpu")),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
@pytest.mark.parametrize("kind", FOLDERS)
def test_folders(kind, spoil, marker, tmp_path):
    folder = shutil.copytree(WEIGHTS / kind, tmp_path / "copy")
    for link in [p for p in folder.rglob("*") if p.is_symlink()]:
        content = link.resolve()
        link.unlink()
        (shutil.copytree if content.is_dir() else shutil.copy)(content, link)
    spoil(folder, marker)
    with suppress(ValueError):  # nothing else
        FOLDERS[kind](folder)


def written(path, marker, kind):
    """A hostile file of one kind."""
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"weight": Evil(marker)}, protocol=2))
    elif kind == "archive":
        import torch

        torch.save({"weight": Evil(marker)}, path)
    elif kind == "huge header":
        path.write_bytes((2**60).to_bytes(8, "little") + b"{")
    elif kind == "deep header":
        header = b'{"a":' * 100_000
        path.write_bytes(len(header).to_bytes(8, "little") + header)
    else:
        path.write_bytes(b"")


FILES = {
    "SAM": (load_segmenter, ("sam.pth", "sam.safetensors")),
    "adapter": (load_adapter, ("x.safetensors",)),
    "trajectory": (lambda path: load_trajectory(path, None, None), ("x.safetensors",)),
}


@pytest.mark.parametrize("content", ["pickle", "archive", "huge header", "deep header", "nothing"])
@pytest.mark.parametrize("kind", FILES)
def test_files(kind, content, marker, tmp_path):
    loader, names = FILES[kind]
    for name in names:
        written(tmp_path / name, marker, content)
        with pytest.raises(ValueError, match=Path(name).stem):
            loader(tmp_path / name)


def test_the_trap_works(tmp_path):
    """The same content, read as the careless do, leaves its mark."""
    pickle.loads(pickle.dumps({"weight": Evil(tmp_path / "it ran")}))
    assert (tmp_path / "it ran").exists()
