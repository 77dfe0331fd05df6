"""CONTRIBUTING.md and the README hold: their examples run as they stand there, and the names in them are the code's.

The metric's example is run in `measure/test_contributing.py`.
"""

import ast
import importlib.util
import inspect
import re
import sys

import pytest
import torch

from weft.backbones.memory import PlainMemory
from weft.engine.call import Call
from weft.engine.edit import edit
from weft.engine.inversion import add_noise, invert
from weft.engine.plan import ATTENTION_ORDER, PLAIN, Control, Region
from weft.engine.ports import Backbone, Denoiser
from weft.engine.solver import DDIM
from weft.methods import spatio_temporal
from weft.methods.injection import FeatureInjection
from weft.methods.spatio_temporal import SpatioTemporalAttention
from weft.tests.conftest import ROOT
from weft.tests.engine.analytic import Gaussian, GaussianCodec, GaussianText
from weft.tests.numerics import assert_close
from weft.tests.test_architecture import BELOW

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
STEPS = 5


def block(start):
    """The one block of Python that begins with, or defines, this."""
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if start in code)
    return code


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Makes a module of an example, by the path that the page gives it."""

    def make(path, start):
        assert f"`{path}`" in PAGE
        file = tmp_path / path.split("/")[-1]
        file.write_text(block(start))
        name = f"weft.{path.removesuffix('.py').replace('/', '.')}"
        spec = importlib.util.spec_from_file_location(name, file)
        made = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, made)
        spec.loader.exec_module(made)
        return made

    return make


# ---- a solver -------------------------------------------------------------------------------------------------------


@pytest.fixture
def sdedit(module):
    return module("methods/sdedit.py", "class SDEdit").SDEdit


@pytest.fixture(params=["epsilon", "v_prediction", "flow"])
def gaussian(request):
    return Gaussian(prediction_type=request.param)


def test_the_solver_from_all_levels_is_ddim_bit_for_bit(sdedit, gaussian):
    trajectory = add_noise(gaussian, gaussian.sample(mean=0.5), gaussian.text.embed("a dog"), steps=STEPS)
    cat = gaussian.text.embed("a red cat")
    assert torch.equal(
        edit(gaussian, trajectory, cat, solver=sdedit(start=1.0)), edit(gaussian, trajectory, cat, solver=DDIM())
    )


def test_the_solver_starts_at_its_level_of_the_source_and_keeps_more_of_it_the_lower_that_is(sdedit, gaussian):
    clip, cat = gaussian.sample(mean=0.5), gaussian.text.embed("a red cat")
    trajectory = add_noise(gaussian, clip, gaussian.text.embed("a dog"), steps=STEPS)
    away = []
    for level in range(1, STEPS + 1):
        gaussian.evaluations.clear()
        edited = edit(gaussian, trajectory, cat, solver=sdedit(start=level / STEPS), guidance=1.0)
        assert len(gaussian.evaluations) == level
        assert torch.equal(gaussian.evaluations[0].latents[0], trajectory.at(level))
        away.append((edited - clip).norm().item())
    assert away == sorted(away)
    assert away[0] < away[-1]


@pytest.mark.parametrize("start", [0, -0.5, 1.1, float("nan")])
def test_the_solver_refuses_a_start_that_is_no_share(sdedit, start):
    with pytest.raises(ValueError, match="want a start over 0 and up to 1"):
        sdedit(start=start)


# ---- a model family -------------------------------------------------------------------------------------------------


@pytest.fixture
def one_layer(module):
    """The made-up model, with a codec and texts that are there."""
    made = module("backbones/one_layer.py", "class OneLayerDenoiser")
    network = made.OneLayer(channels=4, text=3).eval().requires_grad_(False)
    for layer in (network.to_q, network.to_k):
        layer.weight *= 5  # attention that is not nearly even
    return Backbone("one layer", made.OneLayerDenoiser(network, PlainMemory("cpu")), GaussianCodec(), GaussianText())


def clip(frames=3):
    return torch.randn(frames, 4, 3, 5)


def inverted(backbone, latents, **how):
    return invert(backbone, latents, backbone.text.embed("a dog"), steps=STEPS, **how)


def test_the_family_is_a_denoiser(one_layer):
    wanted = {name for kind in Denoiser.__mro__ for name in (*vars(kind), *getattr(kind, "__annotations__", ()))}
    public = {name for name in wanted if not name.startswith("_")}
    assert {"session", "free", "schedule", "sites", "bytes"} <= public
    assert not {name for name in public if not hasattr(one_layer.denoiser, name)}


def test_the_family_gives_a_clip_back_and_edits_it(one_layer):
    latents = clip()
    trajectory = inverted(one_layer, latents, evaluations=30)
    back = edit(one_layer, trajectory, trajectory.prompt, guidance=1.0)
    assert_close(back, latents)
    edited = edit(one_layer, trajectory, one_layer.text.embed("a red cat"), guidance=3.0)
    assert edited.isfinite().all()
    assert not torch.allclose(edited, latents, atol=1e-2)


def test_the_family_runs_in_chunks_and_in_regions(one_layer):
    trajectory, cat = inverted(one_layer, clip()), one_layer.text.embed("a red cat")
    whole = edit(one_layer, trajectory, cat)
    assert_close(edit(one_layer, trajectory, cat, chunk_frames=2), whole)
    mask = torch.zeros(1, 3, 5).repeat_interleave(8, 1).repeat_interleave(8, 2)
    mask[:, :, : 2 * 8] = 1
    part = edit(one_layer, trajectory, cat, plan=PLAIN.with_region(Region(cat, mask=mask)))
    assert torch.equal(part[..., 2:], one_layer.codec.unscale(trajectory.at(0))[..., 2:])
    assert not torch.allclose(part[..., :2], one_layer.codec.unscale(trajectory.at(0))[..., :2], atol=1e-2)


def test_controls_act_at_the_familys_site(one_layer):
    """Frames that are all alike have nothing to tell each other; others have."""
    cat, plan = one_layer.text.embed("a red cat"), PLAIN.then(SpatioTemporalAttention())
    alike, different = inverted(one_layer, clip(1).repeat(3, 1, 1, 1)), inverted(one_layer, clip())
    assert_close(edit(one_layer, alike, cat, plan=plan, guidance=1.0), edit(one_layer, alike, cat, guidance=1.0))
    assert not torch.allclose(edit(one_layer, different, cat, plan=plan), edit(one_layer, different, cat), atol=1e-3)


def test_the_source_runs_beside_the_familys_edit(one_layer):
    """An edit whose attention looks where the source's looks is another edit."""

    class Mapped(FeatureInjection):
        def check(self, trajectory, model, target):
            pass  # this network has no decoder

        def injects(self, place):
            return True

    trajectory, cat = inverted(one_layer, clip(), evaluations=30), one_layer.text.embed("a red cat")
    mapped = edit(one_layer, trajectory, cat, plan=PLAIN.then(Mapped()))
    assert not torch.allclose(mapped, edit(one_layer, trajectory, cat), atol=1e-3)
    alone = edit(one_layer, trajectory, trajectory.prompt, plan=PLAIN.then(Mapped()), guidance=1.0)
    assert_close(alone, edit(one_layer, trajectory, trajectory.prompt, guidance=1.0))


# ---- a control, the seams, the house --------------------------------------------------------------------------------


def test_the_control_sees_the_frame_before(one_layer):
    names = dict(vars(spatio_temporal))
    exec(block("class Neighbours"), names)
    plan, dog = PLAIN.then(names["Neighbours"]()), one_layer.text.embed("a dog")
    latents, cat = clip(), one_layer.text.embed("a red cat")

    def edited(frames, plan):
        trajectory = add_noise(one_layer, latents[frames], dog, steps=1, noise="per_frame", frames=range(3)[frames])
        return edit(one_layer, trajectory, cat, plan=plan)

    got = edited(slice(0, 3), plan)
    assert_close(got[:1], edited(slice(0, 1), PLAIN))
    for f in (1, 2):
        assert_close(got[f], edited(slice(f - 1, f + 1), PLAIN.then(SpatioTemporalAttention()))[1])
    assert not torch.allclose(got[1:], edited(slice(0, 3), PLAIN)[1:], atol=1e-3)


def test_the_seams_are_those_of_a_control():
    table = PAGE[PAGE.index("| seam |") : PAGE.index("What a control says of itself")]
    for name, arguments in re.findall(r"`(\w+)\(([\w, ]+)\)", table):
        assert ["self", *arguments.split(", ")] == list(inspect.signature(getattr(Control, name)).parameters)
    says = PAGE[PAGE.index("What a control says of itself") : PAGE.index("An attention call is data")]
    assert tuple(re.findall(r"`(\w+)` \((?!\.)", says.splitlines()[4])) == ATTENTION_ORDER
    for name in re.findall(r"^\| `(\w+)", says, re.MULTILINE):
        assert hasattr(Control, name), name
    call = PAGE[PAGE.index("An attention call is data") : PAGE.index("This is all that a control")]
    found = re.findall(r"^\| `call\.(\w+)", call, re.MULTILINE)
    assert len(found) == 5
    assert not [name for name in found if not hasattr(Call, name)]


def test_the_house_is_the_tree():
    rooms = set(re.findall(r"^(\w+)/ ", PAGE[PAGE.index("## The house") :], re.MULTILINE))
    assert set(BELOW) <= rooms
    assert all((ROOT / room).is_dir() for room in rooms)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_files_that_are_named_are_there(name):
    text = (ROOT / name).read_text()
    made_up = {"methods/x.py", "nodes/x.py", "tests/methods/test_x.py", "workflows/x.json", "workflows/build/x.py"}
    made_up |= {"methods/sdedit.py", "backbones/one_layer.py", "measure/brightness.py"}
    rooms = "|".join(sorted({*BELOW, "tests", "web"}))
    found = set(re.findall(rf"[`(\[]((?:{rooms})/[\w/.]+\.\w+)[`)\]]", text))
    assert len(found) > 5
    missing = [path for path in found - made_up if not (ROOT / path).exists()]
    assert not missing


def test_what_the_readme_imports_is_there_and_takes_what_it_is_given():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    tree, names = ast.parse(code), {}
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), "README.md", "exec"), names)
    called = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert len(called) > 3
    for node in called:
        given = {word.arg: None for word in node.keywords}
        inspect.signature(names[node.func.id]).bind(*node.args, **given)
