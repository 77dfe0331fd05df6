"""Each widget by mouse and by keyboard, in the page: what it shows and writes, and that it survives a reload."""

import json

import pytest

from weft.tests.comfy.conftest import MODES, require_elements
from weft.tests.schemas import schemas
from weft.toyworld import clip, world
from weft.workflows.build.parts import SAM, node, prompts, source, track, wire

pytestmark = [pytest.mark.comfy, pytest.mark.each_comfyui]
FRAMES, MODEL = wire("Source frames", "images"), wire("Model")
INSTRUCTED = {"model": wire("Instructed"), "images": FRAMES, "instruction": wire("Instruction")}
SAMPLED = {"model": MODEL, "trajectory": wire("Noise"), "positive": wire("Target prompt")}
GRAPH = {
    "Source": source("toyworld/video") | prompts(),
    "Mask": {
        "SAM": node("WeftLoadSAM", model=SAM),
        "Click": node("WeftSAMMask", sam=wire("SAM"), images=FRAMES),
        "Track": track("Click"),
    },
    "Edit": {
        "Noise": node("WeftAddNoise", model=MODEL, latent=wire("Encode"), source_prompt=wire("Source prompt"), steps=4),
        "Guide": node("WeftSTRLatentOptimizer", step_mode="relative"),
        "Sample": node("WeftEditSampler", **SAMPLED, plan=wire("Guide"), cfg=1.5),
        "Decode": node("WeftDecodeFrames", model=MODEL, latent=wire("Sample", "latent")),
    },
    "Look": {
        "Compare": node("WeftCompareVideos", a=FRAMES, b=wire("Decode"), fps=8.0),
        "Words": node("WeftPreviewWords", model=MODEL, trajectory=wire("Noise"), words="square"),
        "Score": node(
            "WeftPreviewSTRScore",
            model=MODEL,
            trajectory=wire("Noise"),
            edit=wire("Sample", "latent"),
            edit_prompt=wire("Target prompt"),
        ),
        "Figures": node("WeftEvaluateEdit", source=FRAMES, edit=wire("Decode")),
    },
    "Match": {
        "Find": node("WeftCorrespondence", model=MODEL, latent=wire("Encode")),
        "Matches": node("WeftPreviewCorrespondence", correspondence=wire("Find"), images=FRAMES),
    },
    "Choose": {
        "Instructed": node("WeftLoadModel", model="toyworld/instruct", dtype="auto"),
        "Instruction": node("WeftEncodePrompt", model=wire("Instructed"), text=clip.instruction()),
        "Candidates": node("WeftEditCandidates", **INSTRUCTED, count=2, steps=2),
    },
}
SHOW = "app.graph._nodes.find((n) => n.title === '{}').widgets.find((w) => w.name === 'weft_view').element"
VALUES = "app.graph._nodes.find((n) => n.title === '{}').serialize().widgets_values"
ALL_VALUES = "app.graph._nodes.map((n) => [n.title, n.serialize().widgets_values ?? []])"
MIDDLE = """(() => {{
  const canvas = {show}.querySelector('canvas');
  return [...canvas.getContext('2d').getImageData(canvas.width / 2 + {right}, canvas.height / 2, 1, 1).data];
}})()"""
COLORED = """(() => {{
  const canvas = {show}.querySelector('canvas'), [red, green, blue] = {color};
  const {{ data }} = canvas.getContext('2d').getImageData(0, 0, canvas.width * {wide}, canvas.height * {high});
  let count = 0;
  for (let i = 0; i < data.length; i += 4)
    count += Math.max(Math.abs(data[i] - red), Math.abs(data[i + 1] - green), Math.abs(data[i + 2] - blue)) < 24;
  return count;
}})()"""
PROMPT = """app.graphToPrompt().then(({ output }) =>
  Object.values(output).filter((n) => n.class_type.startsWith('Weft')).map((n) => Object.keys(n.inputs)))"""
LISTEN = [
    "until",
    """(window.weftLive = {}, window.comfyAPI.api.api.addEventListener('weft.run', ({ detail }) => {
  const node = app.graph.getNodeById(detail.node), view = node?.widgets?.find((w) => w.name === 'weft_view');
  if (view) (weftLive[node.title] ??= []).push([detail.frames.length, view.element.innerText]);
}), true)""",
]
AWAY_AND_BACK = """(async () => {
  const { command } = app.extensionManager;
  for (const name of ['Comfy.NewBlankWorkflow', 'Workspace.PreviousOpenedWorkflow']) await command.execute(name);
  return app.graph._nodes.length;
})()"""
YELLOW, BLUE = [255, 230, 26], [102, 204, 255]  # of the best match, of the loss


def read(what, title="", **more):
    return ["read", what.format(title, show=SHOW.format(title), **more)]


def text(title):
    return ["read", f"{SHOW.format(title)}.innerText"]


def keys(*pressed):
    return [["key", key] for key in pressed]


X, Y = (clip.source_clip().center[0, 0] / world.SIZE).tolist()


def at(x, y):
    """A place of the clip, which is a square in the middle of a canvas that is wider than high."""
    return [0.5 + (x - 0.5) * 0.7, y]


ACTS = {  # what the answers are called -> what is done, each "read" an answer
    "wheeled": [["wheel", "Click", -100], ["until", "app.canvas.ds.scale > 0.8"], ["read", "app.canvas.ds.scale"]],
    "clicked": [
        ["until", f"{SHOW.format('Click')}.innerText.includes('1/1')"],  # the video's first frame, before any run
        ["click", "Click", *at(X, Y)],
        read(VALUES, "Click"),
        ["shiftClick", "Click", *at(0.9, 0.1)],
        *keys("d", "d", "x", "X"),
        read(VALUES, "Click"),
        *keys("Backspace", "Backspace", "Backspace"),
        ["drag", "Click", *at(X - 0.2, Y - 0.2), *at(X + 0.2, Y + 0.2)],
        read(VALUES, "Click"),
        ["runBy", "Enter"],
        ["wait", 0.5],
        text("Click"),
    ],
    "run": [
        LISTEN,
        ["run"],
        ["wait", 0.5],
        ["read", "weftLive"],
        text("Sample"),
        read(COLORED, "Sample", color=BLUE, wide=1, high=1),
        text("Track"),
        text("Figures"),
    ],
    "compared": [
        ["click", "Compare", 0.5, 0.5],
        read(MIDDLE, "Compare", right=-20),
        read(MIDDLE, "Compare", right=20),
        *keys("d", "d", "d"),
        read(MIDDLE, "Compare", right=20),
        *keys("3"),
        read(MIDDLE, "Compare", right=20),
        *keys("ArrowRight", "ArrowRight"),
        text("Compare"),
        read(VALUES, "Compare"),
    ],
    "matched": [
        ["click", "Matches", 0.5, 0.5],
        read(VALUES, "Matches"),
        *keys("ArrowRight"),
        read(COLORED, "Matches", color=YELLOW, wide=0.2, high=0.1),
        *keys("Home", "w", "w", "x"),
        read(VALUES, "Matches"),
    ],
    "words": [
        ["press", "Words", "input[title^=Threshold]", 0.8],
        read(VALUES, "Words"),
        ["click", "Words", 0.5, 0.5],
        *keys("-", "-"),
        read(VALUES, "Words"),
        ["press", "Words", "button[title=square]"],
        text("Words"),
    ],
    "scored": [
        ["clickRun", "Score", 0.25, 0.5],
        ["wait", 0.5],
        read(VALUES, "Score"),
        text("Score"),
        *keys("]"),
        text("Score"),
        ["clickRun", "Score", 0.75, 0.5],
        read(VALUES, "Score"),
    ],
    "chosen": [
        ["click", "Candidates", 0.75, 0.5],
        read(VALUES, "Candidates"),
        *keys("0"),
        read(VALUES, "Candidates"),
    ],
    "back": [
        ["read", AWAY_AND_BACK],
        ["until", f"{SHOW.format('Sample')}.innerText.includes('Guidance moves')"],
        text("Sample"),
    ],
    "kept": [["read", ALL_VALUES], ["reopen"], ["wait", 0.5], ["read", ALL_VALUES], ["read", PROMPT]],
}


@pytest.fixture(scope="module", params=MODES)
def seen(pages, request):
    """{what was done: what the page then held}."""
    only = {"only": MODES.index(request.param)}
    # A seed of its own: what ComfyUI still has from the other page's run it does not tell this page of.
    noise = node("WeftAddNoise", **GRAPH["Edit"]["Noise"]["inputs"], seed=MODES.index(request.param))
    pages.do({"build": GRAPH | {"Edit": GRAPH["Edit"] | {"Noise": noise}}, **only})
    require_elements(pages, request.param, "Click")
    ours = pages.do({"act": [["read", f"{SHOW.format('Click')}.isConnected"]], **only})[0]["seen"]
    assert ours == [True], "ComfyUI's own text is drawn, and our widget is not"
    return {name: pages.do({"act": acts, **only})[0]["seen"] for name, acts in ACTS.items()}


def value(seen, what, i, type, name):
    """A widget's value among those that were read of a node."""
    names = [slot.name for slot in schemas()[type].inputs if slot.is_widget]
    return dict(zip(names, seen[what][i]))[name]


def test_a_click_is_a_point_on_the_thing_and_with_shift_one_beside_it(seen):
    (point,) = json.loads(value(seen, "clicked", 0, "WeftSAMMask", "positive"))
    assert abs(point["x"] - X * world.SIZE) < 8
    assert abs(point["y"] - Y * world.SIZE) < 8
    assert json.loads(value(seen, "clicked", 1, "WeftSAMMask", "negative"))[0]["x"] > 48


def test_the_wheel_zooms_the_graph_over_a_picture_too(seen):
    assert 0.8 < seen["wheeled"][0] < 1.2, "one turn, not two"


def test_keys_point_too(seen):
    positive, negative = (json.loads(value(seen, "clicked", 1, "WeftSAMMask", k)) for k in ("positive", "negative"))
    assert positive[1] == negative[1]
    assert world.SIZE / 2 < positive[1]["x"] < 0.7 * world.SIZE, "two steps to the right of the middle"


def test_a_click_is_taken_back_and_a_drag_is_a_box(seen):
    positive, negative, boxes = (value(seen, "clicked", 2, "WeftSAMMask", k) for k in ("positive", "negative", "boxes"))
    assert (len(json.loads(positive)), negative) == (1, "")
    left, top, right, bottom = json.loads(boxes)[0]["box"]
    assert left < right
    assert top < bottom


def test_the_mask_is_made_alone_and_the_clip_is_there(seen):
    assert "1/8" in seen["clicked"][3]


def test_a_run_is_seen_while_it_goes_on(seen):
    live, told, curve, tracked, figures = seen["run"]
    assert [frames for frames, _ in live["Sample"]] == [8] * 4
    assert live["Sample"][0][1].startswith("Step 1 of 4.")
    assert [label for _, label in live["Track"] if "7/7" in label], "masks come one by one"
    assert told.startswith("Step 4 of 4. Guidance moves")
    assert told.endswith("Does too little change? cfg is 1.5, which is low.")
    assert curve > 50, "the loss is drawn"
    assert "/8" in tracked, "and all of them in the end"
    assert "psnr" in figures.lower()


def test_clips_are_compared_in_step(seen):
    left, right, moved, difference, stepped, kept = seen["compared"]
    assert left != right
    assert moved != right, "the divider went over the place"
    assert difference not in (right, moved)
    assert "3/8" in stepped
    assert kept == [8]


def test_matches_of_a_place_are_shown_with_their_similarity(seen):
    first, similarity, moved = seen["matched"]
    (by_mouse,), (by_keys,) = (json.loads(v[0]) for v in (first, moved))
    assert by_mouse["y"] > by_keys["y"]
    assert similarity > 10, "a number in the color of the best match"


def test_a_threshold_is_moved_by_mouse_and_keys(seen):
    moved, less = (value(seen, "words", i, "WeftPreviewWords", "threshold") for i in (0, 1))
    assert 0.7 < moved < 0.9
    assert less == pytest.approx(moved - 0.02)
    assert "square" in seen["words"][2]


def test_a_click_scores_a_point_of_source_or_edit(seen):
    _, before, after, _ = seen["scored"]
    x, y, again = (value(seen, "scored", i, "WeftPreviewSTRScore", k) for i, k in ((0, "x"), (0, "y"), (3, "x")))
    assert all(0.4 < share < 0.6 for share in (x, y, again)), "the middle of either panel is that of the clip"
    assert ("1/4" in before, "2/4" in after) == (True, True), "another noise level"


def test_a_candidate_is_chosen_by_mouse_and_by_number(seen):
    assert [value(seen, "chosen", i, "WeftEditCandidates", "choice") for i in (0, 1)] == [1, 0]


def test_who_leaves_the_tab_and_comes_back_sees_the_last_run(seen):
    nodes, told = seen["back"]
    assert nodes == sum(map(len, GRAPH.values()))
    assert told == seen["run"][1]


def test_all_that_was_set_survives_a_save_and_a_reload(seen):
    before, after, _ = seen["kept"]
    assert before == after


def test_pictures_are_not_in_the_prompt(seen):
    known = {slot.name for schema in schemas().values() for slot in schema.inputs}
    assert all(set(inputs) <= known for inputs in seen["kept"][2])


def test_the_page_complains_of_nothing_of_ours(pages, seen):
    complaints = [c for found in pages.do({"errors": True}) for c in found]
    assert [c for c in complaints if "weft" in f"{c['text']} {c['from']}".lower()] == []
