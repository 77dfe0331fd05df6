"""The committed tables still say what the code does: one of their rows made anew, on four clips a table."""

import pytest

from weft.benchmarks import toyworld_cove, toyworld_stem, toyworld_str, toyworld_via

CLIPS = range(4)
# What is read off a picture by thresholds moves by whole frames, so figures are compared as a reader sees them: shares
# to a frame of the sixteen, dB and px to the second digit of the tables, rounded sums of many products allowed for.
CLOSE = {"accuracy": 1 / 16, "psnr": 0.1, "error_px": 0.1, "warp": 0.1, "spread": 0.005, "iou": 0.01}
ROWS = {
    "STR-Match": (toyworld_str, toyworld_str.SWEEP, "row_sum, sgd, strength 0.5"),
    "COVE": (toyworld_cove, toyworld_cove.GROUND, "COVE, K = 3"),
    "STEM and FateZero": (toyworld_stem, toyworld_stem.EDITS, "FateZero, STEM, K = 64 inversion"),
    "STEM and TokenFlow": (toyworld_stem, toyworld_stem.WARM_EDITS, "TokenFlow, DDIM inversion"),
    "VIA": (toyworld_via, toyworld_via.GROUND, toyworld_via.GATHERED),
}


@pytest.fixture(scope="module")
def bench():
    made = {}
    return lambda module: made.setdefault(module, module.Bench())


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("name", ROWS)
def test_a_committed_row_is_what_is_made_today(name, clip, bench):
    module, section, setting = ROWS[name]
    settings = module.SETTINGS if hasattr(module, "SETTINGS") else module.settings()
    (wanted,) = (s for s in settings if (s.section, s.name) == (section, setting))
    committed = module.ROWS.of(section, setting)[clip]
    made = bench(module).row(wanted, clip)
    compared = [figure for figure in made if any(kind in figure for kind in CLOSE) and figure in committed]
    assert len(compared) >= 3
    for figure in compared:
        within = next(limit for kind, limit in CLOSE.items() if kind in figure)
        assert made[figure] == pytest.approx(committed[figure], abs=within), figure
