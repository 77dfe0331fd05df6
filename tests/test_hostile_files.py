"""Of a hostile file nothing is run, nothing fetched, nothing waited for and nothing huge made, whichever loader gets
it: it is refused in one line, or loaded without what is hostile in it. It is long because there are many loaders."""

import pickle
import shutil
import signal
import socket
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from weft.backbones.diffusers.loading import load_backbone
from weft.backbones.diffusers.motion import load_animatediff
from weft.backbones.lora import Adapter, adapt, load_adapter, save_adapter, with_adapter
from weft.backbones.memory import PlainMemory
from weft.backbones.prompt_file import load_prompt
from weft.engine.inversion import invert
from weft.engine.trajectory_file import load_trajectory, save_trajectory
from weft.tests.backbones.test_motion import lora_of
from weft.tests.checkpoints import WIDTHS, adapter_of, make_checkpoint, released
from weft.tests.conftest import ROOT
from weft.tests.hostile import (
    SHAPES,
    SPOILED,
    TEXTS,
    Evil,
    copied,
    header_of,
    number_layers,
    spoil_tensor,
    write,
)
from weft.tests.tiny import make_cogvideox_folder, make_folder, make_latents, make_lavie_folder
from weft.tests.vision.tiny_detectors import make_sam2
from weft.toyworld.text import make_tokenizer
from weft.vision.clip import load_clip
from weft.vision.detector import load_detector
from weft.vision.sam import load_segmenter

SHIPPED = ROOT / "toyworld" / "weights"
CPU = PlainMemory("cpu")
HOW = {"dtype": "float32", "memory": CPU}
LONGEST = 700  # characters of a refusal
PATIENCE = 60  # seconds, of what takes one
MOST = 2**31  # bytes beside what this process has: nothing here takes a tenth of it
SOURCE = "a red square"


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


@pytest.fixture
def bounded():
    """A test that waits for ever or takes all memory ends in an error that no loader turns into a refusal."""
    resource = pytest.importorskip("resource", reason="NOT TESTED: this system bounds no memory")

    class TookTooLong(BaseException):
        pass

    def stop(*_):
        raise TookTooLong

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    old = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST, before[1]))
    signal.alarm(PATIENCE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of each kind, made when it is asked for, and what loads a copy of it."""
    base = tmp_path_factory.mktemp("whole")
    words = base / "words"
    make_tokenizer(words)
    return SimpleNamespace(base=base, words=words, made={})


# ---- folders --------------------------------------------------------------------------------------------------------


def _motion_folder(folder, whole):
    adapter_of("v2").save_pretrained(folder)


FOLDERS = {  # kind -> (what makes one, what loads it)
    "image": (lambda at, _: copied(SHIPPED / "image", at), lambda at, _: load_backbone(at, **HOW)),
    "clip": (lambda at, _: copied(SHIPPED / "clip", at), lambda at, _: load_clip(at, memory=CPU)),
    "detector": (lambda at, _: copied(SHIPPED / "detector", at), lambda at, _: load_detector(at, memory=CPU)),
    "cogvideox": (lambda at, _: make_cogvideox_folder(at, layers=1), lambda at, _: load_backbone(at, **HOW)),
    "lavie": (lambda at, _: make_lavie_folder(at, suffix=".safetensors"), lambda at, _: load_backbone(at, **HOW)),
    "sam2": (lambda at, _: make_sam2(at), lambda at, _: load_segmenter(at, memory=CPU)),
    "motion": (_motion_folder, lambda at, whole: _load_motion(at, whole)),
}


def kept(name, make, whole):
    if name not in whole.made:
        make(whole.base / name, whole)
        whole.made[name] = whole.base / name
    return whole.made[name]


def copy_of(kind, whole, to):
    if kind == "sam2":
        pytest.importorskip("transformers", "4.56", reason="NOT TESTED: this transformers has no SAM 2")
    return copied(kept(kind, FOLDERS[kind][0], whole), to)


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
@pytest.mark.parametrize("kind", FOLDERS)
def test_folders(kind, spoil, marker, tmp_path, whole):
    folder = copy_of(kind, whole, tmp_path / "copy")
    spoil(folder, marker)
    with suppress(ValueError):  # nothing else
        FOLDERS[kind][1](folder, whole)


@pytest.mark.parametrize("spoil", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("kind", FOLDERS)
def test_files_of_a_folder(kind, spoil, marker, tmp_path, whole, bounded):
    """One after the other: what is read first would hide the rest."""
    source = copy_of(kind, whole, tmp_path / "source")
    names = [p.relative_to(source) for p in source.rglob("*") if p.suffix in (".json", ".txt", ".model")]
    assert names
    for name in names:
        folder = shutil.copytree(source, tmp_path / "copy", symlinks=True)
        spoil(folder / name)
        refused_in_one_line(FOLDERS[kind][1], folder, whole, what=name)
        shutil.rmtree(folder)


def refused_in_one_line(load, *given, what, must=False):
    """Whether it is refused or loaded, unless it must not be."""
    told = ""
    try:
        load(*given)
    except ValueError as refusal:
        told = str(refusal)
    assert "\n" not in told, what
    assert len(told) < LONGEST, what
    assert told or not must, f"{what}: it was loaded"


# ---- files ----------------------------------------------------------------------------------------------------------


def _trained(whole):
    """A model, and an adapter of it."""
    if "trained" not in whole.made:
        model = load_backbone(kept("tiny", lambda at, _: make_folder(at, kind="image"), whole), **HOW)
        adapter = adapt(model, lambda _, parameters: [p.data.fill_(0.1) for p in parameters], rank=2)[1]
        whole.made["trained"] = model, adapter
    return whole.made["trained"]


def _save_lora(file, whole):
    layers = {f"down_blocks.0.motion_modules.1.transformer_blocks.0.attn1.{to}": WIDTHS[0] for to in ("to_q", "to_k")}
    _save(lora_of("released", layers)[0], file)


def _save(tensors, file):
    from safetensors.torch import save_file

    save_file(tensors, file)


def _save_checkpoint(kind):
    def save(file, whole):
        from transformers import CLIPTokenizer

        make_checkpoint(file, CLIPTokenizer.from_pretrained(whole.words), kind)

    return save


def _save_trajectory(file, whole):
    model, _ = _trained(whole)
    save_trajectory(invert(model, make_latents(), model.text.embed(SOURCE), steps=2), file)


def _load_motion(file, whole, loras=()):
    base = kept("sd1.safetensors", _save_checkpoint("sd1"), whole)
    return load_animatediff(base, file, loras=loras, tokenizer=whole.words, **HOW)


def _load_lora(file, whole):
    released_module = kept("mm.safetensors", lambda at, _: _save(released(adapter_of("v2")), at), whole)
    return _load_motion(released_module, whole, [(file, 1.0)])


def _load_trajectory(file, whole):
    model, _ = _trained(whole)
    return load_trajectory(file, model, model.text.embed(SOURCE))


FILES = {  # kind -> (what makes one, what loads it, endings)
    "SAM": (
        lambda file, _: shutil.copy(SHIPPED / "sam" / "sam.safetensors", file),
        lambda file, _: load_segmenter(file, memory=CPU),
        (".safetensors", ".pth", ".pt"),
    ),
    "sd1": (
        _save_checkpoint("sd1"),
        lambda file, whole: load_backbone(file, tokenizer=whole.words, **HOW),
        (".safetensors", ".ckpt"),
    ),
    "sd2": (
        _save_checkpoint("sd2"),
        lambda file, whole: load_backbone(file, tokenizer=whole.words, **HOW),
        (".safetensors",),
    ),
    "motion module": (
        lambda file, _: _save(released(adapter_of("v2")), file),
        _load_motion,
        (".safetensors", ".ckpt", ".pt", ".pth"),
    ),
    "motion LoRA": (_save_lora, _load_lora, (".safetensors", ".ckpt")),
    "adapter": (
        lambda file, whole: save_adapter(_trained(whole)[1], file),
        lambda file, whole: with_adapter(_trained(whole)[0], load_adapter(file)),
        (".safetensors",),
    ),
    "trajectory": (_save_trajectory, _load_trajectory, (".safetensors",)),
    "prompt": (
        lambda file, _: _save({"embedding": torch.ones(1, 4, 64)}, file),
        lambda file, whole: load_prompt(_trained(whole)[0], file, "x"),
        (".safetensors", ".pt"),
    ),
}


def hostile(path, marker, kind):
    """Writes a hostile file of one kind."""
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"weight": Evil(marker)}, protocol=2))
    elif kind == "archive":
        torch.save({"weight": Evil(marker)}, path)
    elif kind == "huge header":
        path.write_bytes((2**60).to_bytes(8, "little") + b"{")
    elif kind == "deep header":
        header = b'{"a":' * 100_000
        path.write_bytes(len(header).to_bytes(8, "little") + header)
    elif kind == "a number for a tensor":  # one that stands for all of them, as torch saves what was expanded
        torch.save({"weight": torch.zeros(1).expand(10**6, 10**6)}, path)
    else:
        TEXTS[kind](path) if kind in TEXTS else path.write_bytes(b"")


CONTENTS = ["pickle", "archive", "huge header", "deep header", "a number for a tensor", "nothing"]


@pytest.mark.parametrize("content", [*CONTENTS, "pipe", "endless", "link_to_itself"])
@pytest.mark.parametrize("kind", FILES)
def test_files(kind, content, marker, tmp_path, whole, bounded):
    _, load, endings = FILES[kind]
    for ending in endings:
        file = tmp_path / f"x{ending}"
        file.touch()
        hostile(file, marker, content)
        with pytest.raises(ValueError, match=r"'(.*/)?x\.") as refusal:
            load(file, whole)
        assert "\n" not in str(refusal.value)
        assert len(str(refusal.value)) < LONGEST


SOME = 3  # tensors of a file, from the first to the last


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", FILES)
def test_tensors_of_other_shapes(kind, shape, tmp_path, whole, bounded):
    """One after the other is spoiled; the sizes of a model are read off some of them."""
    make, load, _ = FILES[kind]
    source = kept(f"{kind}.safetensors", make, whole)
    names = sorted(set(header_of(source)[0]) - {"__metadata__"})
    for name in dict.fromkeys(names[i * (len(names) - 1) // (SOME - 1)] for i in range(SOME)):
        file = Path(shutil.copy(source, tmp_path / "x.safetensors"))
        spoil_tensor(file, name, SHAPES[shape])
        refused_in_one_line(load, file, whole, what=name, must=kind != "prompt")


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind not in ("prompt", "trajectory")])
def test_a_layer_with_a_number_beyond_counting(kind, tmp_path, whole, bounded):
    make, load, _ = FILES[kind]
    source = kept(f"{kind}.safetensors", make, whole)
    for name in [n for n in header_of(source)[0] if ".0." in n][:2]:
        file = Path(shutil.copy(source, tmp_path / "x.safetensors"))
        number_layers(file, name)
        refused_in_one_line(load, file, whole, what=name, must=True)


SCHEDULES = {
    "deep": "[" * 100_000,
    "no lists": "{}",
    "a number beyond floats": f"[[1, 2], [1.0, 0.9, 0.8], [0.0, {10**400}, 0.2], 1]",
    "not numbers": '[["a", "b"], [1.0, 0.9, 0.8], [0.0, 0.1, 0.2], "epsilon"]',
    "endless digits": "[" + "9" * 10_000 + "]",
    "lines": '"a\\nb"',
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_a_trajectory_says_of_itself(schedule, tmp_path, whole, bounded):
    source = kept("trajectory.safetensors", _save_trajectory, whole)
    header, content = header_of(source)
    header["__metadata__"]["weft_schedule"] = SCHEDULES[schedule]
    write(tmp_path / "x.safetensors", header, content)
    refused_in_one_line(_load_trajectory, tmp_path / "x.safetensors", whole, what=schedule, must=True)


@pytest.mark.parametrize("rank", [0, 10**9, "9" * 5000, "٣", "-1", ""])
def test_the_rank_that_an_adapter_says_is_that_of_its_layers(rank, tmp_path, whole, bounded):
    _, adapter = _trained(whole)
    save_adapter(Adapter(adapter.weights, rank, adapter.model), tmp_path / "x.safetensors")
    refused_in_one_line(FILES["adapter"][1], tmp_path / "x.safetensors", whole, what=rank, must=True)


def test_the_trap_works(tmp_path):
    """The same content, read as the careless do, leaves its mark."""
    pickle.loads(pickle.dumps({"weight": Evil(tmp_path / "it ran")}))
    assert (tmp_path / "it ran").exists()


@pytest.mark.parametrize("kind", FOLDERS)
def test_the_folders_load(kind, whole, tmp_path):
    """Unspoiled: no loader refuses everything."""
    FOLDERS[kind][1](copy_of(kind, whole, tmp_path / "copy"), whole)


@pytest.mark.parametrize("kind", FILES)
def test_the_files_load(kind, whole):
    make, load, _ = FILES[kind]
    load(kept(f"{kind}.safetensors", make, whole), whole)
