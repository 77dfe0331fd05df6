"""The README names every workflow, node and model, and its commands do what it says."""

import re

import pytest
import torch
from safetensors.torch import load_file

from weft.backbones.known_models import KNOWN
from weft.tests.checkpoints import make_checkpoint
from weft.tests.conftest import ROOT
from weft.tests.schemas import schemas
from weft.workflows.build.graphs import GRAPHS

PAGE = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", GRAPHS)
def test_every_workflow_is_found(name):
    assert f"**`{name}`**" in PAGE


@pytest.mark.parametrize("node_id", schemas())
def test_every_node_is_found(node_id):
    assert schemas()[node_id].display_name.removesuffix(" (Weft)") in re.sub(r"\s+", " ", PAGE)


@pytest.mark.parametrize("name", sorted(set(KNOWN) - {"stable-diffusion-2-1-base"}))  # whose repository is gone
def test_every_model_is_said_to_come_from_where_the_loader_says(name):
    rows = [line for line in PAGE.splitlines() if line.startswith("|")]
    of_it = [row for row in rows if all(part in row for part in KNOWN[name].source.split(", "))]
    assert any(KNOWN[name].place in row for row in of_it)


def test_pictures_are_there():
    pictures = re.findall(r'!\[[^\]]*\]\(([^)]+)\)|<img src="([^"]+)"', PAGE)
    assert len(pictures) > 8
    assert not [a + b for a, b in pictures if not (ROOT / (a + b)).is_file()]


def test_the_command_for_magicbrush_makes_a_checkpoint_of_its_weights(tmp_path, monkeypatch):
    from transformers import CLIPTokenizer

    from weft.toyworld.text import make_tokenizer

    make_tokenizer(tmp_path / "words")
    whole = make_checkpoint(tmp_path / "whole.safetensors", CLIPTokenizer.from_pretrained(tmp_path / "words"), "sd1", 8)
    weights = load_file(whole)
    held = {"state_dict": weights | {"model_ema.decay": torch.ones(())}, "global_step": 4999}
    torch.save(held, tmp_path / "MagicBrush-epoch-52-step-4999.ckpt")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r'^python -c "\n(import safetensors.*?)"$', PAGE, re.DOTALL | re.MULTILINE)
    exec(compile(code, "README.md", "exec"), {})
    made = load_file(tmp_path / "MagicBrush.safetensors")
    assert made.keys() == weights.keys()
    assert all(torch.equal(made[name], weight) for name, weight in weights.items())
