import json

import pytest
import torch

from weft.tests.vision.by_color import WIDTH, Finder, gone, moving
from weft.vision.find import find
from weft.vision.prompts import read_prompts


def test_boxes_come_best_first_and_as_text():
    found = find(Finder(), moving(), "A  square.", at=(0, 2), top=0)
    assert [d.score for d in found.at[0]] == [0.8, 0.3]
    assert found.at[2][0].box == (4, 4, 7, 7)
    assert found.at[0][1].box == (0, 0, WIDTH, 5)  # cut to the picture
    assert found.boxes.splitlines()[1] == "2: 4.0,4.0,7.0,7.0; 0.0,0.0,16.0,5.0"
    assert json.loads(found.json)[0] == {"frame": 0, "box": [2, 4, 5, 7], "score": 0.8, "label": "a square"}
    assert [len(things) for things in read_prompts(boxes=found.boxes).values()] == [2, 2]
    assert len(found.pictures) == 2
    assert not torch.equal(found.pictures, moving()[[0, 2]])


def test_threshold_and_top():
    assert len(find(Finder(), moving(), "it", threshold=0.5, top=0).at[0]) == 1
    assert len(find(Finder(), moving(), "it", top=1).at[0]) == 1


def test_frames_where_nothing_is_found_are_left_out_aloud(caplog):
    found = find(Finder(), gone(), "a square", at=(0, 3, 4))
    assert list(found.at) == [0]
    assert "no 'a square' found in frames 3, 4" in caplog.text


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "no text"),
        (" , .", {}, "no text"),
        ("a square", {"at": (3, 4)}, r"finder finds no 'a square' in frames 3, 4: its best score is 0.05"),
        ("a square", {"threshold": 0.9}, "best score is 0.80 and the threshold 0.9; lower it"),
        ("a square", {"threshold": 2}, "want a threshold in 0..1"),
    ],
)
def test_finding_nothing_is_an_error(text, options, message):
    with pytest.raises(ValueError, match=message):
        find(Finder(), gone(), text, **options)
