import re
import subprocess
import sys

import pytest

from weft.headless import environment
from weft.tests.conftest import ROOT


@pytest.fixture
def installing(monkeypatch, tmp_path):
    """Everything but pip: `.venv` is elsewhere, and what would be installed is listed."""
    comfyui = tmp_path / "ComfyUI"
    comfyui.mkdir()
    (comfyui / "requirements.txt").write_text(
        "# a comment\ntorch\ntorchvision>=0.1\ntorchaudio\ntorchsde\nav>=14 # b\n"
    )
    commands = []

    def run(command, **_):
        commands.append([str(part) for part in command])
        environment.VENV.mkdir(exist_ok=True)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(environment, "VENV", tmp_path / "venv")
    monkeypatch.setattr(environment, "find_comfyui", lambda: comfyui)
    monkeypatch.setattr(environment, "find_comfyuis", lambda: [comfyui])
    monkeypatch.setattr(environment.subprocess, "run", run)
    return comfyui, commands


def test_a_second_call_does_nothing(installing):
    comfyui, commands = installing
    environment.prepare()
    assert commands
    commands.clear()
    environment.prepare()
    assert commands == []
    (comfyui / "requirements.txt").write_text("scipy\n")
    environment.prepare()
    assert any("scipy" in command for command in commands)


def test_torch_is_never_chosen_by_anything_else(installing):
    _, commands = installing
    environment.prepare(torch="2.99.0")
    installs = [command for command in commands if "install" in command]
    assert "torch==2.99.0" in installs[0]
    for command in installs:
        unpinned = {"torch", "torchvision>=0.1", "torchaudio"} & set(command)
        assert not unpinned
        assert "torch==2.99.0" in command or not {"-r", "torchsde"} & set(command)
    files = [command[i + 1] for command in installs for i, part in enumerate(command) if part == "-r"]
    assert files == [str(ROOT / "requirements.txt"), str(ROOT / "headless" / "requirements.txt")]
    assert any({"torchsde", "av>=14", "requests"} <= set(command) for command in installs)


def test_an_unfinished_install_is_done_again(installing, monkeypatch):
    _, commands = installing
    with monkeypatch.context() as broken:
        broken.setattr(environment, "_pip", _fail)
        with pytest.raises(subprocess.CalledProcessError):
            environment.prepare()
    commands.clear()
    environment.prepare()
    assert commands


def _fail(*_):
    raise subprocess.CalledProcessError(1, "pip")


@pytest.mark.parametrize(("missing", "installs"), [((), 0), (("peft",), 1)])
def test_a_further_comfyui_gets_what_the_pack_requires(monkeypatch, tmp_path, missing, installs):
    """Into its own environment, whose torch stays; and nothing where it has no environment, or has all."""
    monkeypatch.setattr(environment, "_make", lambda *_: None)
    monkeypatch.setattr(environment, "VENV", tmp_path / "venv")
    alone, other = tmp_path / "alone" / "ComfyUI", tmp_path / "ComfyUI-other"
    own = tmp_path / "venv-other" / "bin" / "python"
    for folder in (alone, other, own.parent):
        folder.mkdir(parents=True)
    for folder in (alone, other):
        (folder / "requirements.txt").write_text("a-package-that-is-nowhere\n")
    own.touch()
    monkeypatch.setattr(environment, "find_comfyuis", lambda: [tmp_path, alone, other])
    commands = []

    def run(command, **_):
        commands.append([str(part) for part in command])
        here = [f"{name}={'' if name in missing else '2.7.1+cpu'}" for name in command[3:]]
        return subprocess.CompletedProcess(command, 0, stdout="\n".join(here))

    monkeypatch.setattr(environment.subprocess, "run", run)
    environment.prepare()
    assert {command[0] for command in commands} == {str(own)}
    pips = [command for command in commands if "pip" in command]
    assert len(pips) == installs
    assert all({"torch==2.7.1+cpu", str(ROOT / "requirements.txt")} <= set(command) for command in pips)


def test_requirements_have_lower_bounds_only():
    text = "".join(file.read_text() for file in environment.REQUIREMENTS)
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    assert all(re.fullmatch(r"[a-z0-9-]+>=[0-9.]+", line) for line in lines), lines


def test_the_registry_reads_the_same_requirements():
    project = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["dependencies"]' in project
    assert 'dependencies = { file = "requirements.txt" }' in project


def test_it_runs_before_anything_is_installed():
    """With the standard library alone: no site-packages."""
    code = "import weft.headless.environment, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
