"""The benchmark's baselines compute what the operators compute, and its table has a number in every cell."""

import torch

from weft.benchmarks import kernel_cases as cases
from weft.benchmarks.kernels import rows_of
from weft.kernels import attention_map, str_rows
from weft.tests.numerics import assert_close

CPU = torch.device("cpu")


def test_eager_is_the_operator():
    q, k = torch.randn(2, 3, 2, 9, 4)
    t = torch.randn(9, 3, 3).softmax(-1)
    assert_close(cases.eager_maps(q, k), attention_map(q, k))
    a = cases.score_of_maps(cases.eager_maps(k, q), t, 1)
    assert_close(cases.eager_rows(q, k, t, a), str_rows(k, q, t, q, k, t))


def test_every_case_runs_and_fills_its_row():
    small = [
        cases.str_case("small", [(2, 3, 9, 2, 4), (1, 3, 4, 1, 4)], CPU, torch.float32, False),
        cases.map_case(1, 2, 9, 4, CPU, torch.float32, False),
        cases.topk_case(3, 4, 4, 8, 3, CPU, torch.float32, False),
        cases.gather_case(2, 9, 3, 4, CPU, torch.float32, False),
        cases.merged_case(2, 9, 3, 4, CPU, torch.float32, False),
        cases.nearest_case(4, 2, 9, 3, CPU, torch.float32, False),
        cases.em_case(2, 16, 4, 4, CPU, torch.float32, False),
    ]
    lines = [line for case in small for line in rows_of(case, CPU, (1e9, 1e9), runs=1)]
    assert len(lines) == 15
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == 10
        assert all(float(cell) >= 0 for cell in cells[3:])
