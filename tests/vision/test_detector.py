"""Detectors from disk: how what they find is passed on."""

import shutil

import pytest
import torch

from weft.backbones.memory import PlainMemory
from weft.tests.vision.asked import noise, truncated
from weft.tests.vision.tiny_detectors import change_config, make_grounding_dino, make_owlv2
from weft.vision import detector as detectors
from weft.vision.detector import load_detector

CPU = PlainMemory("cpu")


@pytest.fixture(scope="module", params=[make_owlv2, make_grounding_dino], ids=["owlv2", "grounding dino"])
def detector_folder(request, tmp_path_factory):
    torch.manual_seed(0)
    return request.param(tmp_path_factory.mktemp("detectors") / "tiny")


@pytest.fixture(scope="module")
def detector(detector_folder):
    return load_detector(detector_folder, memory=CPU)


def test_detectors_give_boxes_scores_and_labels(detector):
    """Random weights: what they find means nothing, how it is passed on is what is tested."""
    everything, best = detector.find(noise(48, 64), ("a red square", "a blue circle"), 0.0)
    assert len(everything) > 1
    scores = sorted(d.score for d in everything)
    assert best == pytest.approx(scores[-1], abs=1e-6)
    assert all(0 <= d.score <= 1 and len(d.box) == 4 and isinstance(d.label, str) for d in everything)
    middle = scores[len(scores) // 2]
    some, best_of_some = detector.find(noise(48, 64), ("a red square", "a blue circle"), middle)
    assert {d.box for d in some} == {d.box for d in everything if d.score > middle}
    assert best_of_some == best
    assert not detector.find(noise(48, 64), ("a red square",), 1.0)[0]


def test_boxes_are_in_pixels_of_the_frame(detector, monkeypatch):
    """The network's are shares of the picture; OWLv2's is padded to a square first."""
    said, forward = [], detector.model.forward
    monkeypatch.setattr(detector.model, "forward", lambda **k: said.append(forward(**k)) or said[-1])
    height, width = 48, 80
    found, _ = detector.find(noise(height, width), ("a red square",), 0.0)
    sides = (width, height) if detector.reads_sentences else (width, width)
    x, y, w, h = (said[0].pred_boxes[0] * torch.tensor(sides * 2)).unbind(1)
    want = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)
    got = torch.tensor([d.box for d in found])
    assert len(got) == len(want)
    torch.testing.assert_close(got.sort(0).values, want.sort(0).values, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["threshold", "box_threshold"])
def test_both_names_of_the_threshold(detector, monkeypatch, name):
    """`box_threshold` until transformers 4.50, `threshold` since; the installed one is tested above."""
    given = {}
    answer = [{"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": []}]
    old = f"def read(outputs, input_ids, {name}=0.25, text_threshold=0.25, target_sizes=None):\n given.update(locals())"
    space = {"given": given}
    exec(old + "\n return answer", space | {"answer": answer}, space)
    monkeypatch.setattr(detector.processor, "post_process_grounded_object_detection", space["read"])
    assert detector.find(noise(32, 48), ("a red square",), 0.4)[0] == []
    assert given[name] == 0.4
    assert given["target_sizes"] == [(32, 48)]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: change_config(f, model_type="yolo"), "holds a yolo: want one of grounding-dino"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights in"),
        (lambda f: truncated(f / "model.safetensors", f / "model.safetensors"), "not a whole safetensors file"),
    ],
)
def test_folders_that_are_no_detector_are_refused(detector_folder, tmp_path, spoil, message):
    folder = shutil.copytree(detector_folder, tmp_path / "copy")
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        load_detector(folder, memory=CPU)


def test_every_family_has_its_classes():
    import transformers

    for model, processor in detectors.FAMILIES.values():
        assert hasattr(transformers, model)
        assert hasattr(transformers, processor)
