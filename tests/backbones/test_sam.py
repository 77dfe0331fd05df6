"""Segmenters and detectors from disk, held against the packages whose classes they are."""

import shutil
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from weft.backbones import detector as detectors
from weft.backbones.detector import load_detector
from weft.backbones.memory import PlainMemory
from weft.backbones.sam import load_segmenter
from weft.backbones.sam_parts import Architecture, make_sam, sam_from
from weft.engine.masks import Prompts
from weft.engine.monitor import SILENT, Monitor
from weft.tests.backbones.tiny_detectors import change_config, make_grounding_dino, make_owlv2, make_sam2
from weft.tests.numerics import assert_close
from weft.toyworld import sam as toy

CPU = PlainMemory("cpu")
PROMPTS = {
    "click": Prompts(((30, 20),)),
    "two clicks": Prompts(((30, 20), (5, 6))),
    "negative": Prompts(((30, 20),), ((2, 3),)),
    "box": Prompts(box=(10, 8, 40, 33)),
    "box and click": Prompts(((30, 20),), (), (10, 8, 40, 33)),
}


def noise(height, width, frames=None):
    shape = (height, width, 3) if frames is None else (frames, height, width, 3)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return toy.make_sam().state_dict()


@pytest.fixture(scope="module")
def checkpoint(weights, tmp_path_factory):
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("sams") / "any name.safetensors"
    save_file(weights, path)
    return path


@pytest.fixture(scope="module")
def sam(checkpoint):
    return load_segmenter(checkpoint, memory=CPU)


# ---- SAM ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit_b", "vit_l", "vit_h"])
def test_the_official_sizes_are_read_off_the_tensors(kind):
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        official = sam_model_registry[kind]()
        ours = make_sam(Architecture.of(official.state_dict()))
    want, got = ({name: t.shape for name, t in m.state_dict().items()} for m in (official, ours))
    assert got == want
    assert got  # and what no tensor tells
    for name in ("image_encoder.img_size", "mask_decoder.transformer.num_heads", "prompt_encoder.input_image_size"):
        value = [_get(m, name) for m in (official, ours)]
        assert value[0] == value[1], name
    for mine, theirs in zip(ours.image_encoder.blocks, official.image_encoder.blocks, strict=True):
        assert mine.window_size == theirs.window_size
        assert mine.attn.num_heads == theirs.attn.num_heads
        assert mine.norm1.eps == theirs.norm1.eps


def _get(module, path):
    for name in path.split("."):
        module = getattr(module, name)
    return module


@pytest.mark.parametrize("name", PROMPTS)
def test_answers_are_the_official_predictors(sam, weights, name):
    from segment_anything import SamPredictor

    frame, asked = noise(48, 64), PROMPTS[name]
    predictor = SamPredictor(sam_from(weights))
    predictor.set_image((frame * 255).round().byte().numpy())
    points = (*asked.points, *asked.not_points)
    labels = [1] * len(asked.points) + [0] * len(asked.not_points)
    masks, scores, raw = predictor.predict(
        np.array(points, dtype=float) if points else None,
        np.array(labels) if points else None,
        box=np.array(asked.box, dtype=float) if asked.box else None,
        multimask_output=name == "click",
    )
    got = sam.look((frame * 255).round() / 255)(asked)
    assert len(got.masks) == (3 if name == "click" else 1)
    assert torch.equal(got.masks, torch.from_numpy(masks))
    torch.testing.assert_close(got.scores, torch.from_numpy(scores), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.raw, torch.from_numpy(raw), rtol=1e-3, atol=1e-4)


def test_an_answer_can_be_asked_again(sam):
    ask = sam.look(noise(64, 64))
    first = ask(PROMPTS["box"])
    again = ask(Prompts(box=PROMPTS["box"].box, guess=first.raw[0]))
    assert not torch.equal(again.raw, first.raw)


@pytest.mark.parametrize("size", [(64, 64), (31, 100), (128, 90), (7, 64)])
def test_pictures_of_any_shape(sam, size):
    got = sam.look(noise(*size))(Prompts(((3, 3),)))
    assert got.masks.shape == (3, *size)


def test_places_scale_with_the_picture(sam):
    """A picture twice as large, asked at the same place, gives the same logits."""
    hills = noise(4, 4).movedim(-1, 0)[None]
    small, large = (F.interpolate(hills, s, mode="bicubic")[0].movedim(0, -1).clamp(0, 1) for s in (64, 128))
    a = sam.look(small)(Prompts(((30, 20),), (), (10, 8, 40, 33)))
    b = sam.look(large)(Prompts(((60.5, 40.5),), (), (20.5, 16.5, 80.5, 66.5)))
    assert (a.raw - b.raw).abs().mean() < 0.02 * a.raw.std()
    elsewhere = sam.look(large)(Prompts(((30, 20),), (), (10, 8, 40, 33)))
    assert (a.raw - elsewhere.raw).abs().mean() > 0.1 * a.raw.std()


def test_pth_files_of_nothing_but_tensors(sam, weights, tmp_path):
    torch.save(weights, tmp_path / "sam.pth")
    frame = noise(64, 64)
    got = load_segmenter(tmp_path / "sam.pth", memory=CPU).look(frame)(PROMPTS["click"])
    assert_close(got.raw, sam.look(frame)(PROMPTS["click"]).raw)


def test_half_precision_is_near(sam, checkpoint):
    half = load_segmenter(checkpoint, dtype="bfloat16", memory=CPU)
    assert {p.dtype for p in half.sam.image_encoder.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in half.sam.mask_decoder.parameters()} == {torch.float32}
    frame = noise(64, 64)
    got, want = (s.look(frame)(PROMPTS["click"]).raw for s in (half, sam))
    assert (got - want).abs().mean() < 0.1 * want.std()


def test_loads_and_answers_inside_inference_mode(sam, checkpoint):
    frame = noise(64, 64)
    with torch.inference_mode():
        got = load_segmenter(checkpoint, memory=CPU).look(frame.clone())(PROMPTS["click"])
    assert_close(got.raw, sam.look(frame)(PROMPTS["click"]).raw)


class Code:
    """What a pickle may hold besides tensors."""


def truncated(path, source):
    path.write_bytes(source.read_bytes()[:-1000])


def pickled(path, source):
    torch.save({"model": Code()}, path)


def another(path, source):
    torch.save({"conv.weight": torch.zeros(3)}, path)


def nested(path, source):
    torch.save({"epoch": 3, "model": {}}, path)


def spoiled(path, source):
    from safetensors.torch import load_file

    weights = load_file(source)
    del weights["prompt_encoder.no_mask_embed.weight"]
    torch.save(weights, path)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("gone.pth", lambda path, source: None, "there is no file 'gone.pth'"),
        ("cut.safetensors", truncated, "'cut.safetensors' is not a whole safetensors file"),
        ("cut.pth", truncated, "'cut.pth' is truncated, or a pickle that holds more than tensors"),
        ("code.pth", pickled, "'code.pth' is truncated, or a pickle that holds more than tensors"),
        ("other.pth", another, "'other.pth' is not a Segment Anything checkpoint .* it has no image_encoder"),
        ("nested.pth", nested, "'nested.pth' holds no plain set of tensors"),
        ("part.pth", spoiled, "'part.pth' is not a Segment Anything checkpoint .*no_mask_embed"),
        ("sam.onnx", truncated, "'sam.onnx' is not a checkpoint: want a file that ends in .safetensors"),
    ],
)
def test_files_that_are_no_sam_are_refused(checkpoint, tmp_path, name, write, message):
    write(tmp_path / name, checkpoint)
    with pytest.raises(ValueError, match=rf"(?s){message}"):
        load_segmenter(tmp_path / name, memory=CPU)


def test_a_wrong_dtype_is_refused(checkpoint):
    with pytest.raises(ValueError, match="no dtype 'int8'"):
        load_segmenter(checkpoint, dtype="int8")


def test_a_missing_package_is_named(checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "segment_anything", None)
    with pytest.raises(ValueError, match=r"packages segment-anything and torchvision.*requirements.txt"):
        load_segmenter(checkpoint)


# ---- SAM 2 ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sam2_folder(tmp_path_factory):
    torch.manual_seed(0)
    return make_sam2(tmp_path_factory.mktemp("sam2") / "tiny")


@pytest.fixture(scope="module")
def sam2(sam2_folder):
    return load_segmenter(sam2_folder, memory=CPU)


@pytest.mark.parametrize("name", PROMPTS)
def test_sam2_answers_as_the_library_does(sam2, sam2_folder, name):
    import transformers

    frame, asked = (noise(64, 64) * 255).round() / 255, PROMPTS[name]
    points, labels = (*asked.points, *asked.not_points), [1] * len(asked.points) + [0] * len(asked.not_points)
    processor = transformers.Sam2Processor.from_pretrained(sam2_folder)
    inputs = processor(
        images=(frame * 255).round().byte().movedim(-1, 0),
        input_points=[[[list(map(float, p)) for p in points]]] if points else None,
        input_labels=[[labels]] if points else None,
        input_boxes=[[list(map(float, asked.box))]] if asked.box else None,
        return_tensors="pt",
    )
    with torch.no_grad():
        want = transformers.Sam2Model.from_pretrained(sam2_folder).eval()(**inputs, multimask_output=name == "click")
    got = sam2.look(frame)(asked)
    assert got.masks.shape[1:] == (64, 64)
    assert_close(got.raw, want.pred_masks[0, 0])
    assert_close(got.scores, want.iou_scores[0, 0])
    assert got.raw.std() > 0


def masks_of(count, height, width):
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    masks[:, 10:30, 12:40] = True
    return masks


def test_streaming_gives_what_the_library_gives_for_the_whole_video(sam2, sam2_folder):
    """Also after the frames that the stream has forgotten."""
    import transformers

    frames = noise(40, 56, frames=11)
    processor = transformers.Sam2VideoProcessor.from_pretrained(sam2_folder)
    model = transformers.Sam2VideoModel.from_pretrained(sam2_folder).eval()
    session = processor.init_video_session(video=(frames * 255).round().byte().movedim(-1, 1))
    processor.add_inputs_to_inference_session(session, 3, 1, input_masks=masks_of(1, 40, 56)[0])
    want = {}
    with torch.no_grad():
        model(session, frame_idx=3)
        for reverse in (False, True):
            for out in model.propagate_in_video_iterator(session, start_frame_idx=3, reverse=reverse):
                want[out.frame_idx] = out.object_score_logits.sigmoid().item(), out.pred_masks
            session.output_dict_per_obj[0]["non_cond_frame_outputs"].clear()
    got = {k: (sure, mask) for k, mask, sure in sam2.follow(frames, {3: masks_of(1, 40, 56)[0]}, SILENT)}
    assert sorted(got) == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert len({round(sure, 5) for sure, _ in got.values()}) > 5  # the frames do differ
    for k, (sure, mask) in got.items():
        assert sure == pytest.approx(want[k][0], abs=1e-5)
        resized = F.interpolate(want[k][1].float(), (40, 56), mode="bilinear")[0, 0]
        assert (mask == (resized > 0)).float().mean() > 0.999


def test_given_frames_are_not_tracked_again(sam2):
    frames, masks = noise(40, 56, frames=6), masks_of(2, 40, 56)
    assert [k for k, *_ in sam2.follow(frames, {1: masks[0], 4: masks[1]}, SILENT)] == [2, 3, 5, 0]


def test_the_stream_keeps_no_more_than_it_looks_at(sam2, monkeypatch):
    sessions = []
    begin = sam2.video_processor.init_video_session
    monkeypatch.setattr(
        sam2.video_processor, "init_video_session", lambda **k: sessions.append(begin(**k)) or sessions[-1]
    )
    for k, *_ in sam2.follow(noise(40, 56, frames=15), {0: masks_of(1, 40, 56)[0]}, SILENT):
        (session,) = sessions
        outputs = session.output_dict_per_obj[0]["non_cond_frame_outputs"]
        assert not session.processed_frames
        assert len(outputs) <= sam2.video.config.max_object_pointers_in_encoder
        assert k in outputs
        assert not any("high_res_masks" in kept for kept in outputs.values())


def test_cancel_reaches_the_stream(sam2):
    class Stopped(Exception):
        pass

    class Cancel(Monitor):
        checks = 0

        def check(self):
            self.checks += 1
            if self.checks == 4:
                raise Stopped

    seen = []
    with pytest.raises(Stopped):
        seen += [k for k, *_ in _noted(sam2.follow(noise(40, 56, 9), {0: masks_of(1, 40, 56)[0]}, Cancel()), seen)]
    assert len(seen) == 2


def _noted(stream, seen):
    for item in stream:
        seen.append(item[0])
        yield item


def test_one_image_encoder_serves_both(sam2):
    assert sam2.image.vision_encoder is sam2.video.vision_encoder


def test_sam2_without_a_memory_is_asked_frame_by_frame(sam2_folder, tmp_path):
    import transformers

    image = transformers.Sam2Model.from_pretrained(sam2_folder)
    image.save_pretrained(tmp_path)
    for file in sam2_folder.glob("*processor*"):
        shutil.copy(file, tmp_path)
    change_config(tmp_path, model_type="sam2")
    model = load_segmenter(tmp_path, memory=CPU)
    assert not model.follows
    assert model.look(noise(40, 56))(PROMPTS["click"]).masks.shape == (3, 40, 56)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "cannot read"),
        (lambda f: change_config(f, model_type="sam3"), "holds a sam3: want the transformers folder of a SAM 2"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights in"),
        (lambda f: truncated(f / "model.safetensors", f / "model.safetensors"), "not a whole safetensors file"),
    ],
)
def test_folders_that_are_no_sam2_are_refused(sam2_folder, tmp_path, spoil, message):
    folder = shutil.copytree(sam2_folder, tmp_path / "copy")
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        load_segmenter(folder, memory=CPU)


# ---- detectors ------------------------------------------------------------------------------------------------------


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
