import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from weft.backbones.diffusers.loading import load_backbone
from weft.backbones.diffusers.model_folder import SAFE_TORCH
from weft.backbones.memory import PlainMemory
from weft.engine.call import Evaluation
from weft.engine.edit import edit
from weft.engine.inversion import invert
from weft.engine.words import POSITIVE
from weft.tests.numerics import assert_close
from weft.tests.tiny import make_latents

WEIGHTS = {
    "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model",
}  # fmt: skip
PYTORCH = {"unet": "diffusion_pytorch_model.bin", "vae": "diffusion_pytorch_model.bin"}
PYTORCH["text_encoder"] = "pytorch_model.bin"


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(tiny_folder, tmp_path / "copy")


def load(folder, **options):
    return load_backbone(folder, memory=PlainMemory("cpu"), **options)


def output(backbone):
    prompt = backbone.text.embed("a red square")
    with torch.no_grad():
        return backbone.denoiser.predict(Evaluation(make_latents()[None], 321, (prompt,), (POSITIVE,)))


def weights(folder, part):
    return folder / part / f"{WEIGHTS[part]}.safetensors"


def change(file, edit):
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_folder_loads_as_it_was_saved(tiny_folder, tiny):
    saved = load_file(weights(tiny_folder, "unet"))
    loaded = tiny.denoiser.network.state_dict()
    assert set(saved) == set(loaded)
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    assert (tiny.name, load(str(tiny_folder), name="mine").name) == ("tiny", "mine")
    for module in (tiny.denoiser.network, tiny.codec.vae, tiny.text.encoder):
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


def marks(backbone):
    """Of the network, the VAE and the text encoder."""
    return backbone.denoiser.fingerprint, backbone.codec.fingerprint, backbone.text.fingerprint


def test_each_part_keeps_its_fingerprint_on_reload_and_loses_it_with_a_single_weight(folder, tiny):
    now = list(marks(tiny))
    assert list(marks(load(folder))) == now
    for i, (part, name) in enumerate(
        [
            ("unet", "mid_block.attentions.0.proj_in.weight"),
            ("vae", "decoder.conv_out.bias"),
            ("text_encoder", "encoder.layers.1.mlp.fc1.weight"),
        ]
    ):

        def nudge(tensors, name=name):
            tensors[next(k for k in tensors if k.endswith(name))].view(-1)[-2] += 1e-3

        change(weights(folder, part), nudge)
        got = list(marks(load(folder)))
        assert got[i] != now[i]
        assert got[:i] + got[i + 1 :] == now[:i] + now[i + 1 :]
        now = got


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_network_and_text_encoder_take_the_dtype_and_on_a_cpu_the_vae_stays_exact(tiny_folder, dtype):
    backbone = load(tiny_folder, dtype=dtype)
    kind = getattr(torch, dtype)
    assert {p.dtype for p in backbone.denoiser.network.parameters()} == {kind}
    assert {p.dtype for p in backbone.text.encoder.parameters()} == {kind}
    assert {p.dtype for p in backbone.codec.vae.parameters()} == {torch.float32}
    got = output(backbone)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, output(load(tiny_folder)), rtol=0.1, atol=0.15)


class Somewhere(PlainMemory):
    """A device that is no CPU, as far as precision goes."""

    def __init__(self, bfloat16):
        super().__init__("cpu")
        self.device, self.bfloat16 = torch.device("meta"), bfloat16

    def has_bfloat16(self):
        return self.bfloat16


@pytest.mark.parametrize(
    ("dtype", "bfloat16", "upcast", "want"),
    [
        ("float32", True, False, torch.float32),
        ("float16", True, True, torch.bfloat16),
        ("bfloat16", True, False, torch.bfloat16),
        ("float16", False, True, torch.float32),
        ("float16", False, None, torch.float32),
        ("float16", False, False, torch.float16),
    ],
)
def test_the_vae_takes_the_half_precision_it_bears(folder, tiny, dtype, bfloat16, upcast, want):
    path = folder / "vae" / "config.json"
    config = {k: v for k, v in json.loads(path.read_text()).items() if k != "force_upcast"}
    path.write_text(json.dumps(config if upcast is None else {**config, "force_upcast": upcast}))
    backbone = load_backbone(folder, dtype=dtype, memory=Somewhere(bfloat16))
    assert {p.dtype for p in backbone.codec.vae.parameters()} == {want}
    if dtype == "float32":
        assert marks(backbone) == marks(tiny)


def test_the_precision_of_the_vae_makes_no_other_model(folder):
    kinds = [load_backbone(folder, dtype="float16", memory=Somewhere(has)) for has in (True, False)]
    assert kinds[0].codec.vae.dtype != kinds[1].codec.vae.dtype
    assert marks(kinds[0]) == marks(kinds[1]) == marks(load(folder, dtype="float16"))


def test_auto_asks_who_manages_memory(tiny_folder):
    class Half(PlainMemory):
        def default_dtype(self):
            return torch.bfloat16

    assert load_backbone(tiny_folder, memory=Half("cpu")).denoiser.network.dtype == torch.bfloat16
    assert load(tiny_folder).denoiser.network.dtype == torch.float32


def test_a_folder_with_fp16_files_only(folder, tiny):
    for part, stem in WEIGHTS.items():
        tensors = {k: v.half() for k, v in load_file(weights(folder, part)).items()}
        save_file(tensors, folder / part / f"{stem}.fp16.safetensors", metadata={"format": "pt"})
        weights(folder, part).unlink()
    backbone = load(folder)
    assert backbone.denoiser.network.dtype == torch.float32
    want = tiny.denoiser.network.conv_in.weight.half().float()
    assert torch.equal(backbone.denoiser.network.conv_in.weight, want)
    assert backbone.denoiser.fingerprint != tiny.denoiser.fingerprint


def test_fp16_files_beside_whole_ones_are_passed_over(folder, tiny):
    zeros = {k: torch.zeros_like(v).half() for k, v in load_file(weights(folder, "unet")).items()}
    save_file(zeros, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors", metadata={"format": "pt"})
    assert marks(load(folder)) == marks(tiny)


reads_pickles = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < SAFE_TORCH, reason="no pickle is read by this torch"
)


@reads_pickles
def test_bin_files_that_hold_nothing_but_tensors(folder, tiny):
    for part in WEIGHTS:
        torch.save(load_file(weights(folder, part)), folder / part / PYTORCH[part])
        weights(folder, part).unlink()
    backbone = load(folder)
    assert marks(backbone) == marks(tiny)
    assert_close(output(backbone), output(tiny))


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize("form", ["pickle", "torch.save"])
def test_a_pickle_that_holds_code_is_not_run(folder, tmp_path, part, form):
    marker, file = tmp_path / "ran", folder / part / PYTORCH[part]
    weights(folder, part).unlink()
    content = {"conv_in.weight": torch.ones(3), "code": Code(marker)}
    if form == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file)
    match = f"'copy/{part}/{file.name}' is (truncated, or )?a pickle"
    with pytest.raises(ValueError, match=match):
        load(folder)
    assert not marker.exists()
    torch.load(file, weights_only=False) if form == "torch.save" else pickle.loads(file.read_bytes())
    assert marker.exists()  # it would have run


def test_code_beside_safetensors_is_not_run_either(folder, tmp_path, tiny):
    for part in WEIGHTS:
        (folder / part / PYTORCH[part]).write_bytes(pickle.dumps(Code(tmp_path / "ran")))
    assert marks(load(folder)) == marks(tiny)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize("keep", [0, 7, 0.5, 0.999], ids=["empty", "header", "half", "tail"])
def test_truncated_safetensors_are_named(folder, part, keep):
    file = weights(folder, part)
    content = file.read_bytes()
    file.write_bytes(content[: keep if keep in (0, 7) else int(keep * len(content))])
    match = rf"'copy/{part}/{WEIGHTS[part]}.safetensors' is not a whole safetensors file .*: download it again"
    with pytest.raises(ValueError, match=match):
        load(folder)


def test_a_truncated_bin_file_is_named(folder):
    torch.save(load_file(weights(folder, "unet")), folder / "unet" / PYTORCH["unet"])
    weights(folder, "unet").unlink()
    file = folder / "unet" / PYTORCH["unet"]
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"'copy/unet/diffusion_pytorch_model.bin' is (truncated, or )?a pickle"):
        load(folder)


def test_a_safetensors_file_that_is_a_pickle_is_not_run(folder, tmp_path):
    weights(folder, "vae").write_bytes(pickle.dumps(Code(tmp_path / "ran")))
    with pytest.raises(ValueError, match=r"'copy/vae/.*' is not a whole safetensors file"):
        load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("part", WEIGHTS)
def test_missing_weights_are_named(folder, part):
    weights(folder, part).unlink()
    with pytest.raises(ValueError, match=rf"no weights in 'copy/{part}': want \w+\.safetensors there .*found none"):
        load(folder)


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_missing_tensor_is_named_and_not_made_up(folder, part):
    change(weights(folder, part), lambda tensors: tensors.pop(min(tensors)))
    missing = {"unet": "conv_in.bias", "vae": "decoder.conv_in.bias", "text_encoder": "embeddings"}[part]
    with pytest.raises(ValueError, match=rf"(?s)'copy/{part}'.*( lack 1 of the tensors|keys are missing).*{missing}"):
        load(folder)


def test_weights_of_another_size_are_refused(folder):
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "cross_attention_dim": 32}))
    with pytest.raises(ValueError, match=r"(?s)cannot load 'copy/unet': .*shape.*(32.*64|64.*32)"):
        load(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer"])
def test_a_missing_part_is_named(folder, part):
    shutil.rmtree(folder / part)
    with pytest.raises(ValueError, match=f"'copy' has no {part}: is the download complete"):
        load(folder)


@pytest.mark.parametrize(
    ("file", "match"),
    [
        ("model_index.json", "no model_index.json in '.*copy': a diffusers model folder has one"),
        ("scheduler/scheduler_config.json", "no scheduler_config.json in '.*scheduler': it states the noise levels"),
        ("unet/config.json", "no config.json in '.*copy/unet': it says how the model is built"),
        ("tokenizer/vocab.json", "cannot load 'copy/tokenizer'"),
    ],
)
def test_a_missing_file_is_named(folder, file, match):
    (folder / file).unlink()
    for other in (folder / "tokenizer").glob("tokenizer.json" if "vocab" in file else "none"):
        other.unlink()
    with pytest.raises(ValueError, match=match):
        load(folder)


def test_no_folder_at_all(tmp_path):
    with pytest.raises(ValueError, match=r"no model_index\.json in '.*nowhere': a diffusers model folder has one"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{not json", "cannot read '.*model_index.json': "),
        ("[1, 2]", "'.*model_index.json' is not the config of a model: want a JSON object, got a list"),
        ("{}", "'copy' holds a None, which is not supported yet: want one of UNet2DConditionModel, UNet3D"),
        ('{"unet": [null, null]}', "'copy' holds a None, which is not supported yet"),
        ('{"unet": ["diffusers", "UNet1DModel"]}', "'copy' holds a UNet1DModel, which is not supported yet: want one"),
        ('{"transformer": ["diffusers", "WanTransformer3DModel"]}', "'copy' holds a WanTransformer3DModel, which is"),
    ],
)
def test_an_index_of_something_else_is_refused(folder, content, match):
    (folder / "model_index.json").write_text(content)
    with pytest.raises(ValueError, match=match):
        load(folder)


def test_an_unknown_dtype_is_refused(tiny_folder):
    with pytest.raises(ValueError, match="no dtype 'float8': want one of auto, float32, float16, bfloat16"):
        load(tiny_folder, dtype="float8")


def test_running_out_of_memory_is_passed_on_as_it_is(tiny_folder, monkeypatch):
    from diffusers import UNet3DConditionModel

    def full(*_, **__):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(UNet3DConditionModel, "from_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        load(tiny_folder)


def test_the_noise_levels_are_those_the_folder_states(folder):
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    stated = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    path.write_text(json.dumps({**config, **stated}))
    backbone = load(folder)
    schedule = backbone.denoiser.schedule(4)
    assert schedule.prediction == "v_prediction"
    assert schedule.timesteps == (249, 499, 749, 999)
    assert schedule.signal[-1] == 0
    trajectory = invert(backbone, make_latents(frames=5, size=(4, 7)), backbone.text.embed("a red square"), steps=4)
    assert trajectory.latents.isfinite().all()
    assert edit(backbone, trajectory, backbone.text.embed("a blue cross")).shape == (5, 4, 4, 7)
