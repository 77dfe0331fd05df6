"""SAM 2 from disk, held against transformers."""

import shutil

import pytest
import torch
import torch.nn.functional as F

from weft.backbones.memory import PlainMemory
from weft.engine.monitor import SILENT, Monitor
from weft.tests.numerics import assert_close
from weft.tests.vision.asked import PROMPTS, noise, truncated
from weft.tests.vision.tiny_detectors import change_config, make_sam2
from weft.vision.sam import load_segmenter

CPU = PlainMemory("cpu")


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
