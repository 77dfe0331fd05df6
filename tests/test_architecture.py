"""The architecture, checked by reading the source: no ComfyUI and no GPU needed."""

import ast
import re
import subprocess
import sys

import pytest

from weft.tests.conftest import ROOT

BELOW = {  # folder -> the folders it may import
    "kernels": set(),
    "engine": {"kernels"},
    "methods": {"engine", "kernels"},
    "backbones": {"engine", "kernels"},
    "vision": {"backbones", "engine", "kernels"},  # of backbones/ loading and memory alone, see below
    "measure": {"vision", "engine", "kernels"},
    "nodes": {"methods", "measure", "vision", "backbones", "engine", "kernels"},
    "toyworld": {"vision", "backbones", "engine", "kernels"},
    "workflows": {"headless", "toyworld"},
    "headless": {"nodes", "methods", "measure", "vision", "backbones", "engine", "kernels", "toyworld", "benchmarks"},
    "benchmarks": {"methods", "measure", "vision", "backbones", "engine", "kernels", "toyworld"},
}
FILES = {str(p.relative_to(ROOT)): p for folder in BELOW for p in sorted((ROOT / folder).rglob("*.py"))}
COMFYUI = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "folder_paths", "nodes", "server", "execution"}
KNOWS_COMFYUI = re.compile(r"nodes/.*|backbones/(comfy/.*|memory\.py)")
KNOWS_DIFFUSERS = re.compile(r"(backbones|vision|toyworld)/.*")
KNOWS_TRITON = re.compile(r"kernels/\w+/fused\w*\.py")
# only when something asks for them
HEAVY = ("diffusers", "transformers", "triton", "cv2", "segment_anything", "torchmetrics", "torchvision")


@pytest.fixture(params=FILES)
def name(request):
    return request.param


def imports(name):
    """(module, whether it is one of ours) of every import in a file, those for type checkers alone included."""
    path = FILES.get(name, ROOT / name)
    folder = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield _absolute(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                yield _absolute(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.ImportFrom):
            start = folder[: len(folder) + 1 - node.level]
            for alias in node.names:
                yield ".".join((*start, *filter(None, [node.module]), alias.name)), True


def _absolute(module):
    return (module.removeprefix("weft."), True) if module.startswith("weft.") else (module, False)


def test_imports_point_down(name):
    folder = name.split("/")[0]
    for module, ours in imports(name):
        other = module.split(".")[0]
        if ours and other != folder:
            assert other in BELOW[folder], f"{folder}/ may not import {other}/ ({module})"


# engine/ read from top to bottom: a file imports only those above it.
ENGINE = [
    *("monitor", "seeds", "digest", "tensor_file", "autograd", "parts", "words", "schedule", "source", "call"),
    *(
        "correspondence",
        "late_gradient",
        "plan",
        "ports",
        "beside",
        "probe",
        "evaluate",
        "regions",
        "solver",
        "check",
        "resume",
        "inversion",
    ),
    *("trajectory_file", "edit"),
]


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("engine/") and not n.endswith("__init__.py")])
def test_the_engine_is_a_list_read_from_top_to_bottom(name):
    place = ENGINE.index(name.removeprefix("engine/").removesuffix(".py"))
    for module, ours in imports(name):
        if ours and module.startswith("engine."):
            assert module.split(".")[1] in ENGINE[:place], f"{name} imports {module}, which stands below it"


def test_a_long_file_says_why(name):
    text = (ROOT / name).read_text()
    if len(text.splitlines()) > 250:
        assert "long because" in (ast.get_docstring(ast.parse(text)) or ""), "over 250 lines: one idea too many?"


def test_there_is_no_circle():
    """Files that import each other, in a round or in a larger one, cannot be read one after the other."""
    arrows = {name: {found for module, ours in imports(name) if ours and (found := _file(module))} for name in FILES}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for other in sorted(arrows[name] - {name}):
            visit(other)
        done.add(path.pop())

    for name in FILES:
        visit(name)


def _file(module):
    """The file of `folder.file.name`, or of `folder.file`; None for a package's own names."""
    parts = module.split(".")
    for end in (len(parts), len(parts) - 1):
        if (path := "/".join(parts[:end]) + ".py") in FILES:
            return path
    return None


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("vision/")])
def test_vision_takes_only_loading_and_memory_from_backbones(name):
    taken = {module for module, ours in imports(name) if ours and module.startswith("backbones.")}
    allowed = (
        "backbones.memory.",
        "backbones.files.",
        "backbones.diffusers.loading.",
        "backbones.diffusers.model_folder.",
        "backbones.diffusers.tensor_file.",
        "backbones.plain_words.",
    )
    assert all(module.startswith(allowed) for module in taken), taken


@pytest.mark.parametrize(
    ("who", "what"),
    [
        pytest.param(KNOWS_COMFYUI, COMFYUI, id="ComfyUI"),
        pytest.param(KNOWS_DIFFUSERS, {"diffusers", "transformers"}, id="diffusers"),
        pytest.param(KNOWS_TRITON, {"triton"}, id="triton"),
    ],
)
def test_outside_packages_are_known_in_one_place(name, who, what):
    found = {module.split(".")[0] for module, ours in imports(name) if not ours} & what
    assert not found or who.fullmatch(name), f"{name} must not know {found}"


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("nodes/")])
def test_nodes_are_thin(name):
    """A node marshals arguments; loops and tensors belong in methods/ or engine/."""
    tree = ast.parse((ROOT / name).read_text())
    loops = [node.lineno for node in ast.walk(tree) if isinstance(node, (ast.For, ast.While))]
    if name != "nodes/__init__.py":  # it lists the nodes
        assert not loops, f"loops at lines {loops}"
    if name not in ("nodes/host.py", "nodes/guard.py"):  # one shows tensors in ComfyUI's preview, one knows them
        assert "torch" not in {module.split(".")[0] for module, ours in imports(name) if not ours}


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("nodes/") and not n.endswith("__init__.py")])
def test_nodes_call_what_there_is(name):
    """Only ComfyUI imports nodes, so that a name gone from the module it is taken from would be found there alone."""
    tree, ours = ast.parse((ROOT / name).read_text()), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 2:
            for alias in node.names:
                if (module := f"{node.module.replace('.', '/')}/{alias.name}.py") in FILES:
                    ours[alias.asname or alias.name] = FILES[module]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ours:
            there = ast.parse(ours[node.value.id].read_text()).body
            names = {n.name for n in there if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
            names |= {t.id for n in there if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
            assert node.attr in names, f"{name}: {ast.unparse(node)} is not there"


def test_the_door_imports_nothing():
    """pytest runs the root `__init__.py` outside any package, and ComfyUI's log shows no traceback of its failures."""
    body = ast.parse((ROOT / "__init__.py").read_text()).body
    assert not [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]


def test_the_library_is_light():
    rooms = ("engine", "methods", "vision", "measure")
    files = [p.relative_to(ROOT).with_suffix("") for room in rooms for p in (ROOT / room).rglob("*.py")]
    modules = [".".join(("weft", *file.parts)).removesuffix(".__init__") for file in files]
    modules += ["weft.kernels", "weft.backbones.diffusers.loading", "weft.toyworld.world"]
    code = f"import sys, {', '.join(modules)}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_every_package_has_its_folder_here():
    """A new folder of code must say what it may import."""
    folders = {p.parent.relative_to(ROOT).parts[0] for p in ROOT.glob("*/*.py")} - {"tests"}
    assert folders <= set(BELOW), f"add {folders - set(BELOW)} to BELOW"


PRIVATE = re.compile(  # where this was made, and where its packages came from, is nobody's business
    r"(?<![\w.~])/(root|work|home)/\w"
    r"|--(extra-)?index-url"
    r"|https?://(?!(127\.0\.0\.1|localhost|github\.com|git-lfs(\.github\.com)?|www\.apache\.org)\b)[a-z0-9]"
)


def test_no_machine_paths_and_no_hosts_but_the_known():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    found = []
    for name in filter(None, tracked.stdout.split("\0")):
        path = ROOT / name
        try:
            text = path.read_text()
        except (UnicodeDecodeError, FileNotFoundError):  # pictures and weights; files deleted but not yet committed
            continue
        found += [f"{name}: {match.group()}" for match in PRIVATE.finditer(text)]
    assert not found
