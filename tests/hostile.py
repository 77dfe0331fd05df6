"""Files and folders that are not what they say, for `test_hostile_files.py`: each function spoils one that is whole."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import shutil
from pathlib import Path

PICKLES = [
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
    "model.bin",
    "model.pt",
    "model.ckpt",
    "training_args.bin",
    "lavie_base.pt",
]
CODE = ["evil.py", "modeling_evil.py", "pipeline.py", "tokenization_evil.py", "__init__.py", "conftest.py", "setup.py"]
CLASSES = ["", "Model", "Config", "Tokenizer", "Processor", "ImageProcessor", "ModelForZeroShotObjectDetection"]
WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


def copied(source: Path, to: Path) -> Path:
    """A folder with the content of its links."""
    return Path(shutil.copytree(source, to, symlinks=False))


# ---- folders --------------------------------------------------------------------------------------------------------


def folders(folder):
    """A model's folder, and those of its parts."""
    return [folder, *(p for p in folder.rglob("*") if p.is_dir())]


def weights_of(folder):
    return [p for p in folder.rglob("*") if p.suffix in WEIGHTS]


def pickles_for_weights(folder, marker):
    """Pickles under every name, and nothing else to load."""
    for file in weights_of(folder):
        file.unlink()
    pickles_beside_weights(folder, marker)


def pickles_beside_weights(folder, marker):
    for place in folders(folder):
        for name in PICKLES:
            (place / name).write_bytes(pickle.dumps({"weight": Evil(marker)}))


def pickles_called_weights(folder, marker):
    for file in weights_of(folder):
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


def cut_off_weights(folder, marker):
    for file in weights_of(folder):
        file.write_bytes(file.read_bytes()[:-100])


SPOILED = {
    f.__name__: f
    for f in (
        pickles_for_weights,
        pickles_beside_weights,
        pickles_called_weights,
        code_that_configs_ask_for,
        classes_that_configs_name,
        names_of_other_models,
        cut_off_weights,
    )
}


# ---- single files of a folder ---------------------------------------------------------------------------------------


def deep(file):
    file.write_text("[" * 200_000)


def rather_deep(file):
    """Not too deep to be read, and too deep to be walked through by a function that calls itself."""
    file.write_text('{"a":' * 900 + "1" + "}" * 900)


def pipe(file):
    file.unlink()
    os.mkfifo(file)


def endless(file):
    file.unlink()
    file.symlink_to("/dev/zero")


def link_to_itself(file):
    file.unlink()
    file.symlink_to(file)


def huge(file):
    """As far as its size goes: nothing is on the disk."""
    with file.open("wb") as opened:
        opened.truncate(2**40)


TEXTS = {f.__name__: f for f in (deep, rather_deep, pipe, endless, link_to_itself, huge)}


# ---- safetensors whose header lies ----------------------------------------------------------------------------------


def header_of(file):
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def write(file, header, content):
    told = json.dumps(header).encode()
    file.write_bytes(len(told).to_bytes(8, "little") + told + content)


SHAPES = {  # what a tensor may say it is: safetensors takes an axis beyond memory where another is empty
    "an axis beyond memory": lambda shape: [10**9, *[0] * max(1, len(shape) - 1)],
    "another axis beyond memory": lambda shape: [*[0] * max(1, len(shape) - 1), 10**9],
    "no axis": lambda shape: [],
    "one axis": lambda shape: [4],
    "nothing": lambda shape: [0] * len(shape),
    "an axis more": lambda shape: [1, *shape],
}
WIDTHS = {"F64": 8, "I64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes


def spoil_tensor(file, name, reshaped):
    """Writes a safetensors file anew, with one tensor of another shape."""
    header, content = header_of(file)
    told, parts, start = {key: header.pop(key) for key in ("__metadata__",) if key in header}, [], 0
    for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        data = content[slice(*entry["data_offsets"])]
        if key == name:
            entry = entry | {"shape": reshaped(entry["shape"])}
            data = (data + bytes(64))[: math.prod(entry["shape"]) * WIDTHS[entry["dtype"]]]
        told[key] = entry | {"data_offsets": [start, start + len(data)]}
        start += len(data)
        parts.append(data)
    write(file, told, b"".join(parts))


def number_layers(file, name):
    """Gives the layer of a tensor a number beyond counting."""
    header, content = header_of(file)
    header[re.sub(r"\.\d+\.", ".99999999.", name)] = header.pop(name)
    write(file, header, content)
