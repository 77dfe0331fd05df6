"""Every ordinary folder loads; of a hostile one nothing is run, fetched or built."""

import json
import pickle
import shutil
import socket
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from weft.backbones.diffusers import model_folder
from weft.backbones.diffusers.loading import load_backbone
from weft.backbones.memory import PlainMemory
from weft.tests.tiny import make_folder

STEMS = {
    "unet": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "vae": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "text_encoder": ("model", "pytorch_model"),
}

reads_pickles = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < model_folder.SAFE_TORCH,
    reason="no pickle is read by this torch",
)


@pytest.fixture
def folder(tiny_image_folder, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(tiny_image_folder, tmp_path / "copy")


@pytest.fixture(autouse=True)
def _nothing_is_fetched(monkeypatch):
    """Whoever asks for a name on a network fails the test, also where a library would swallow the error."""
    asked = []

    def refuse(*arguments, **_):
        asked.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert not asked


def load(folder):
    return load_backbone(folder, dtype="float32", memory=PlainMemory("cpu"))


def marks(backbone):
    return backbone.denoiser.fingerprint, backbone.codec.fingerprint, backbone.text.fingerprint


def edit(path, **changes):
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not DROP}))


DROP = object()


def weights_of(folder):
    """(part, its file, its tensors) of each part."""
    for part, (stem, _) in STEMS.items():
        file = folder / part / f"{stem}.safetensors"
        yield part, file, load_file(file)


# ---- ordinary -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["fp16", "bf16", "non_ema", "ema"])
def test_a_folder_whose_only_weights_are_a_variant(folder, tiny_image, variant):
    for _, file, _ in weights_of(folder):
        file.rename(file.with_name(f"{file.stem}.{variant}.safetensors"))
    assert marks(load(folder)) == marks(tiny_image)


def test_of_several_variants_the_plain_one_then_the_smallest_is_taken(folder, tiny_image):
    for _, file, tensors in weights_of(folder):
        other = {k: torch.zeros_like(v) for k, v in tensors.items()}
        save_file(other, file.with_name(f"{file.stem}.non_ema.safetensors"), metadata={"format": "pt"})
    assert marks(load(folder)) == marks(tiny_image)
    for _, file, _ in weights_of(folder):
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    assert marks(load(folder)) == marks(tiny_image)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("end", ["safetensors", pytest.param("bin", marks=reads_pickles)])
def test_weights_in_several_files(folder, tiny_image, end, variant):
    middle = f".{variant}" if variant else ""
    for part, file, tensors in list(weights_of(folder)):
        stem, names = STEMS[part][end == "bin"], sorted(tensors)
        shards = [f"{stem}{middle}-0000{i + 1}-of-00002.{end}" for i in range(2)]
        table = {name: shards[i % 2] for i, name in enumerate(names)}
        for shard in shards:
            some = {n: tensors[n] for n in names if table[n] == shard}
            if end == "bin":
                torch.save(some, file.with_name(shard))
            else:
                save_file(some, file.with_name(shard), metadata={"format": "pt"})
        index = {"metadata": {"total_size": 1}, "weight_map": table}
        for name in (
            f"{stem}.{end}.index{middle}.json",
            f"{stem}.{end}{middle}.index.json",
        ):  # of new and old diffusers
            file.with_name(name).write_text(json.dumps(index))
        file.unlink()
    assert marks(load(folder)) == marks(tiny_image)
    (folder / "unet" / shards[0].replace(stem, STEMS["unet"][0])).unlink()
    with pytest.raises(ValueError, match=rf"no diffusion_pytorch_model.*00001-of-00002.{end} in 'copy/unet'.*again"):
        load(folder)


@reads_pickles
def test_the_format_that_torch_had_before_1_6(folder, tiny_image):
    for part, file, tensors in list(weights_of(folder)):
        torch.save(tensors, file.with_name(f"{STEMS[part][1]}.bin"), _use_new_zipfile_serialization=False)
        file.unlink()
    assert marks(load(folder)) == marks(tiny_image)


def test_what_macos_and_git_leave_beside_the_files(folder, tiny_image):
    for file in [f for f in folder.rglob("*") if f.is_file()]:
        file.with_name(f"._{file.name}").write_bytes(b"\x00\x05\x16\x07 Mac OS X" + bytes(60))
    (folder / "unet" / ".gitattributes").write_text("* text")
    assert marks(load(folder)) == marks(tiny_image)


def test_files_that_are_links_as_in_a_cache(folder, tiny_image, tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for i, file in enumerate([f for f in folder.rglob("*") if f.is_file()]):
        file.rename(blobs / str(i))
        file.symlink_to(blobs / str(i))
    assert marks(load(folder)) == marks(tiny_image)


@pytest.mark.parametrize("length", [DROP, 10**30, 77, 16, 9])
def test_a_tokenizer_gives_no_more_tokens_than_the_encoder_reads(folder, length):
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=length)
    prompt = load(folder).text.embed("a red square " * 20)
    assert prompt.cond["embedding"].shape[1] == len(prompt.tokens) == (9 if length == 9 else 16)


# ---- broken ---------------------------------------------------------------------------------------------------------

FILES = [
    "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json",
    "text_encoder/model.safetensors", "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json",
    "scheduler/scheduler_config.json",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_pointers_of_git_lfs_are_named(folder, name):
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1059962\n")
    with pytest.raises(ValueError, match=f"{name.split('/')[-1]}' is a pointer of Git LFS and not the file itself"):
        load(folder)


@pytest.mark.parametrize("name", [n for n in FILES if not n.endswith(".txt")])
def test_files_that_are_cut_off_are_named(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{name}'.*(download it again|is the download complete)"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"time_cond_proj_dim": 16}, "is distilled"),
        ({"num_class_embeds": 10}, "told a class"),
        ({"class_embed_type": "timestep"}, "told a class"),
        ({"addition_embed_type": "text"}, "SDXL"),
    ],
)
def test_networks_that_are_told_more_are_refused(folder, changes, match):
    from diffusers import UNet2DConditionModel

    config = {**json.loads((folder / "unet" / "config.json").read_text()), **changes}
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    with pytest.raises(ValueError, match=rf"the network of 'copy' is not supported, as .*{match}"):
        load(folder)


def test_parts_of_different_models_are_refused(folder, tmp_path):
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    plain = shutil.copytree(folder, tmp_path / "plain")
    config = json.loads((folder / "unet" / "config.json").read_text())
    UNet2DConditionModel.from_config({**config, "cross_attention_dim": 32}).save_pretrained(folder / "unet")
    with pytest.raises(ValueError, match="the network of 'copy' takes texts 32 wide and its text encoder gives 64"):
        load(folder)
    encoder = CLIPTextModel.from_pretrained(plain / "text_encoder")
    small = type(encoder.config)(**{**encoder.config.to_dict(), "vocab_size": 20})
    CLIPTextModel(small).save_pretrained(plain / "text_encoder")
    with pytest.raises(ValueError, match=r"the tokenizer of 'plain' knows \d+ tokens and its text encoder 20"):
        load(plain)


def test_a_scheduler_without_betas_is_refused_at_once(folder):
    edit(
        folder / "scheduler" / "scheduler_config.json", beta_start=DROP, beta_end=DROP, _class_name="EDMEulerScheduler"
    )
    with pytest.raises(ValueError, match=r"EDMEulerScheduler\) states no betas"):
        load(folder)


# ---- hostile --------------------------------------------------------------------------------------------------------


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def plant(folder, marker):
    """Code wherever a library may look for some."""
    code = f"open({str(marker)!r}, 'w').close()\n"
    for place in (folder, *(p for p in folder.iterdir() if p.is_dir())):
        for name in ("pipeline.py", "diffusion_pipeline.py", "modeling.py", "my_module.py", "evil.py", "__init__.py"):
            (place / name).write_text(code + "class Evil: pass\n")


@pytest.mark.parametrize(
    ("part", "entry"),
    [
        ("vae", ["diffusers", "DiffusionPipeline"]),
        ("vae", ["diffusers", "AutoencoderTiny"]),
        ("vae", ["diffusers", "AutoencoderNone"]),
        ("vae", ["evil", "Evil"]),
        ("vae", ["evil", "AutoencoderKL"]),
        ("text_encoder", ["transformers", "AutoModel"]),
        ("text_encoder", ["diffusers", "CLIPTextModel"]),
        ("tokenizer", ["transformers", "AutoTokenizer"]),
        ("tokenizer", ["transformers", "PreTrainedTokenizerFast"]),
        ("tokenizer", [None, None]),
        ("unet", ["evil", "UNet2DConditionModel"]),
    ],
)
def test_no_class_is_made_but_those_on_the_list(folder, tmp_path, part, entry):
    plant(folder, tmp_path / "ran")
    edit(folder / "model_index.json", **{part: entry})
    with pytest.raises(ValueError, match=rf"'copy' names {entry[0]}.{entry[1]} as its {part}, which is not supported"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_classes_that_parts_name_themselves_are_not_made_either(folder, tmp_path, tiny_image):
    """The index is what counts; code in the folder is passed over."""
    plant(folder, tmp_path / "ran")
    edit(folder / "text_encoder" / "config.json", architectures=["Evil"])
    edit(folder / "tokenizer" / "tokenizer_config.json", tokenizer_class="Evil")
    assert marks(load(folder)) == marks(tiny_image)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "decoy", ["decoy", "weights", "{stem}-00001-of-00002", "{stem}.fp16-00001-of-00002", "x{stem}"]
)
@pytest.mark.parametrize("part", STEMS)
def test_a_decoy_beside_a_pickle_does_not_let_it_in(folder, tmp_path, part, decoy):
    stem, pickled = STEMS[part]
    decoy = f"{decoy.format(stem=stem)}.safetensors"
    (folder / part / f"{stem}.safetensors").rename(folder / part / decoy)
    (folder / part / f"{pickled}.bin").write_bytes(pickle.dumps({"x": Code(tmp_path / "ran")}))
    with pytest.raises(ValueError, match=rf"'copy/{part}/{pickled}.bin' is (truncated, or )?a pickle"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_pickles_are_not_read_by_a_torch_that_they_can_fool(folder, monkeypatch):
    for part, file, tensors in list(weights_of(folder)):
        torch.save(tensors, file.with_name(f"{STEMS[part][1]}.bin"))
        file.unlink()
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu124")
    with pytest.raises(ValueError, match=r"is a pickle, which is safe to read from torch 2.6 on; this is 2.5.1"):
        load(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": {"AutoModel": "evil.Evil"}},
        {"auto_map": {"AutoModel": "somebody/evil--evil.Evil"}},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"quantization_config": "somebody/evil"},
        {"text_config": "somebody/evil"},
        {"vision": {"backbone_config": "somebody/evil"}},
        {"parts": [{"backbone": "resnet50"}]},
        {"use_timm_backbone": True},
        {"use_pretrained_backbone": True},
        {"attn_implementation": "somebody/kernel"},
        {"_attn_implementation": "flash_attention_2"},
        {"base_model_name_or_path": "somebody/evil"},
    ],
    ids=str,
)
@pytest.mark.parametrize("part", STEMS)
def test_configs_that_name_something_elsewhere_are_refused(folder, tmp_path, part, changes):
    plant(folder, tmp_path / "ran")
    edit(folder / part / "config.json", **changes)
    with pytest.raises(ValueError, match=rf"'copy/{part}/config.json' asks for something that is not in this folder"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_code_for_a_tokenizer_is_refused(folder, tmp_path):
    plant(folder, tmp_path / "ran")
    edit(folder / "tokenizer" / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]})
    with pytest.raises(ValueError, match=r"'copy/tokenizer/tokenizer_config\.json' asks for something"):
        load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("part", STEMS)
def test_an_adapter_that_names_its_model_is_refused(folder, part):
    (folder / part / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "a/b"}')
    with pytest.raises(ValueError, match=rf"'copy/{part}' holds an adapter"):
        load(folder)


@pytest.mark.parametrize("content", ['"somebody/evil"', "[]", "null", "3", "[" * 100_000, '{"a":' * 100_000, "\xff{}"])
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_configs_that_are_no_objects_are_refused(folder, name, content):
    (folder / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=f"{name}' is not the config of a model|cannot read '.*{name}'"):
        load(folder)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("unet", {"block_out_channels": [8, 16, 16_000]}),
        ("unet", {"cross_attention_dim": 10**9}),
        ("unet", {"layers_per_block": 10**6}),
        ("unet", {"layers_per_block": [1, 1, 10**6]}),
        ("unet", {"transformer_layers_per_block": [[1, 10**6], 1, 1]}),
        ("unet", {"norm_num_groups": 0}),
        ("unet", {"attention_head_dim": 0}),
        ("vae", {"block_out_channels": [8, 100_000]}),
        ("vae", {"latent_channels": 10**8}),
        ("vae", {"latent_channels": 10**40}),
        ("text_encoder", {"vocab_size": 10**9}),
        ("text_encoder", {"hidden_size": 400_000}),
        ("text_encoder", {"num_hidden_layers": 10**7}),
        ("text_encoder", {"max_position_embeddings": 10**12}),
        ("text_encoder", {"num_attention_heads": 0}),
        ("text_encoder", {"hidden_size": -4}),
    ],
)
def test_a_config_of_another_size_than_its_weights_builds_nothing(folder, part, changes):
    edit(folder / part / "config.json", **changes)
    start = time.monotonic()
    with pytest.raises(ValueError, match=rf"'copy/{part}") as refusal:
        load(folder)
    assert time.monotonic() - start < 10
    assert len(str(refusal.value)) < 700


def test_an_index_names_files_beside_it_alone(folder, tmp_path):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(tmp_path / "far.safetensors")
    for name in ("../../far.safetensors", str(tmp_path / "far.safetensors"), "far.bin", 3, None):
        index = {"weight_map": {"conv_in.weight": name}}
        (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match=r"does not say which \.safetensors files beside it hold what"):
            load(folder)
    assert model_folder.find_weights(folder / "vae", "diffusers").safe


@pytest.mark.parametrize("kind", ["video", "image", "instruct"])
def test_every_family_loads_without_a_network(tmp_path, kind):
    assert load(make_folder(tmp_path / kind, kind=kind)).name == kind
