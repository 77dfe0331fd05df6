"""Stopped at any step, an inversion that is run again evaluates what is missing and gives the same bits."""

import errno
import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from weft.engine.inversion import invert
from weft.engine.monitor import Monitor
from weft.engine.plan import Control, EditPlan
from weft.tests.conftest import ROOT
from weft.tests.engine.analytic import Gaussian
from weft.tests.tiny import make_latents

STEPS = 6


class Stopped(Exception):
    pass


class StopAt(Monitor):
    """Raises after a step."""

    def __init__(self, step):
        self.step = step

    def progress(self, done, total, preview=None):
        if done == self.step:
            raise Stopped


def inverted(folder, stop=0, backbone=None, frames=2, **options):
    """(levels, how often the network was evaluated)."""
    backbone = backbone or Gaussian()
    text = options.pop("text", "a dog")
    options = {"steps": STEPS, "resume": folder, "monitor": StopAt(stop)} | options
    latents = options.pop("latents", make_latents(frames, (6, 10)))
    trajectory = invert(backbone, latents, backbone.text.embed(text), **options)
    return trajectory.latents, len(backbone.denoiser.evaluations)


@pytest.mark.parametrize("options", [{}, {"convention": "paper"}, {"evaluations": 3}, {"edit_steps": 2}], ids=str)
@pytest.mark.parametrize("stop", range(1, STEPS + 1))
def test_stopped_after_any_step_it_gives_the_same_bits_and_evaluates_what_is_missing(tmp_path, stop, options):
    whole, count = inverted(None, **options)
    with pytest.raises(Stopped):
        inverted(tmp_path, stop, **options)
    again, rest = inverted(tmp_path, **options)
    assert torch.equal(again, whole)
    each = options.get("evaluations", 1)
    first = 0 if "convention" in options else 1  # a warm start evaluates once more at its beginning
    assert count == STEPS * each + first
    assert rest == (STEPS - stop) * each


def test_done_it_is_read_and_the_network_stays_where_it_is(tmp_path):
    whole, _ = inverted(tmp_path)
    backbone = Gaussian()
    again, count = inverted(tmp_path, backbone=backbone)
    assert torch.equal(again, whole)
    assert count == 0
    assert not backbone.denoiser.prompts  # no session


@dataclass(frozen=True)
class Louder(Control):
    by: float = 1.0

    def evaluate(self, evaluation, evaluate):
        return self.by * evaluate(evaluation)


OTHERS = {
    "clip": {"latents": 2 * make_latents(2, (6, 10))},
    "prompt": {"text": "a cat runs"},
    "steps": {"steps": 5},
    "convention": {"convention": "paper"},
    "evaluations": {"evaluations": 2},
    "levels that are kept": {"edit_steps": 3},
    "plan": {"plan": EditPlan((Louder(0.9),))},
}


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS)
def test_another_inversion_starts_anew(tmp_path, options):
    alone, count = inverted(None, **options)
    inverted(tmp_path)
    after, again = inverted(tmp_path, **options)
    assert torch.equal(after, alone)
    assert again == count


def test_another_model_starts_anew(tmp_path):
    inverted(tmp_path)
    other = Gaussian()
    other.denoiser.fingerprint = "other"
    assert inverted(tmp_path, backbone=other)[1] == STEPS + 1


def test_nothing_is_written_unless_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inverted(None)
    assert not list(tmp_path.iterdir())


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("break_it", ["cut off", "gone", "of another size"])
@pytest.mark.parametrize("which", [0, -1], ids=["a level", "the state"])
def test_what_is_not_whole_starts_anew(tmp_path, caplog, which, break_it):
    whole, count = inverted(None)
    with pytest.raises(Stopped):
        inverted(tmp_path, 4)
    file = files(tmp_path)[which]
    if break_it == "gone":
        file.unlink()
    elif break_it == "cut off":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        from weft.engine.tensor_file import write_tensors

        write_tensors(file, {"latents": torch.zeros(1), "output": torch.zeros(1)}, {"level": "4"})
    again, rest = inverted(tmp_path)
    assert torch.equal(again, whole)
    assert rest == count
    assert "starts anew" in caplog.text or (which == -1 and break_it == "gone")


def test_a_full_disk_costs_the_resuming_and_not_the_inversion(tmp_path, caplog, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert torch.equal(inverted(tmp_path)[0], inverted(None)[0])
    assert caplog.text.count("No space left on device") == 1
    assert not files(tmp_path)


def test_the_log_says_where_and_how_much(tmp_path, caplog):
    caplog.set_level("INFO")
    inverted(tmp_path, latents=make_latents(50, (6, 10)))
    size = sum(p.stat().st_size for p in files(tmp_path))
    assert f"'{next(tmp_path.iterdir())}': {size / 2**20:.1f} MB" in caplog.text


KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}]
from weft.engine.monitor import Monitor
from weft.tests.engine.test_resume import inverted
from pathlib import Path

class Kill(Monitor):
    def progress(self, done, total, preview=None):
        if done == {step}:
            os.kill(os.getpid(), signal.SIGKILL)

inverted(Path({folder!r}), monitor=Kill())
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
@pytest.mark.parametrize("step", [1, 4])
def test_killed_it_goes_on(tmp_path, step):
    code = KILLED.format(root=str(ROOT), step=step, folder=str(tmp_path))
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    again, rest = inverted(tmp_path)
    assert torch.equal(again, inverted(None)[0])
    assert rest == STEPS - step
