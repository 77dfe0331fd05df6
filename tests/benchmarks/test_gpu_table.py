"""The page of figures from a GPU says that no kernel lost where it was measured, so `auto` takes them at any size."""

from collections import defaultdict

from weft.benchmarks.rows import RESULTS

PLAIN = ("eager", "chunked")


def milliseconds(text):
    """{(run, op, shape): {implementation: ms}} of all tables of kernels."""
    found, run = defaultdict(dict), ""
    for line in text.splitlines():
        run = line if line.startswith("## ") else run
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 10 and cells[2].startswith((*PLAIN, "fused")):
            found[run, cells[0], cells[1]][cells[2]] = float(cells[3])
    return found


def test_no_kernel_lost_to_plain_torch_at_a_size_that_was_measured():
    found = {at: ms for at, ms in milliseconds((RESULTS / "gpu.md").read_text()).items() if "fused" in ms}
    assert len({op for _, op, _ in found}) == 7
    lost = [at for at, ms in found.items() if ms["fused"] >= min(t for name, t in ms.items() if name != "fused")]
    assert not lost, (
        f"{lost}: have `auto` take plain torch there, by an obstacle of the operator, and say so in the table"
    )


def test_a_kernel_that_loses_is_seen():
    rows = ["| op | n | eager | 2 | 1 | 1 | 1 | 1 | 1 | 1 |", "| op | n | fused | 3 | 1 | 1 | 1 | 1 | 1 | 1 |"]
    assert milliseconds("\n".join(["## a run", *rows])) == {("## a run", "op", "n"): {"eager": 2.0, "fused": 3.0}}
