"""The sound of a clip is that of its edit, through a workflow as it ships."""

import av
import numpy as np
import pytest

from weft.headless.graph import read_graph
from weft.tests.comfy.conftest import PATIENCE
from weft.tests.conftest import ROOT
from weft.toyworld import clip

pytestmark = pytest.mark.comfy
RATE, HERTZ = 44100, 440


def with_sound(path):
    """The shipped clip with a tone of one second."""
    pictures = (clip.read_video(clip.CLIP) * 255).byte().numpy()
    tone = 0.3 * np.sin(np.arange(RATE) * 2 * np.pi * HERTZ / RATE).astype("float32")
    with av.open(str(path), "w") as out:
        video, audio = out.add_stream("libx264", rate=len(pictures)), out.add_stream("aac", rate=RATE)
        video.height, video.width = pictures.shape[1:3]
        video.pix_fmt = "yuv420p"
        for picture in pictures:
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(video.encode(None))
        for start in range(0, RATE - 1023, 1024):
            frame = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], format="fltp", layout="mono")
            frame.rate, frame.pts = RATE, start
            out.mux(audio.encode(frame))
        out.mux(audio.encode(None))


def heard(path):
    """The loudest frequency of a file's sound."""
    with av.open(str(path)) as file:
        (stream,) = file.streams.audio
        sound = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(stream)])
        spectrum = np.abs(np.fft.rfft(sound))
        return spectrum.argmax() * stream.rate / len(sound)


@pytest.mark.parametrize("source", ["sound.mp4", clip.CLIP.name], ids=["sound", "no sound"])
def test_an_edit_has_the_sound_of_its_source(server, tmp_path, source):
    file = clip.CLIP
    if source == "sound.mp4":
        file = tmp_path / source
        with_sound(file)
    server.upload(file)
    graph = read_graph(ROOT / "workflows" / "api" / "via_global.json")
    for node in graph.values():
        node["inputs"] |= {"file": source} if node["class_type"] == "LoadVideo" else {}
        node["inputs"] |= {"steps": 1} if "steps" in node["inputs"] else {}
    result = server.run(graph, patience=PATIENCE)
    (video,) = [f for f in result.files() if f["filename"].endswith(".mp4")]
    (tmp_path / "edit.mp4").write_bytes(result.fetch(video))
    if source == "sound.mp4":
        assert heard(tmp_path / "edit.mp4") == pytest.approx(HERTZ, abs=3)
    else:
        with av.open(str(tmp_path / "edit.mp4")) as edit:
            assert not edit.streams.audio
