import pytest

from weft.benchmarks.cove_cost import WINDOWS, products


@pytest.mark.parametrize(("window", "count"), [(3, 448_266_240), (9, 4_034_396_160), (15, 11_206_656_000)])
def test_products_are_those_of_the_papers_table(window, count):
    assert products(window)[0] == count
    assert float(f"{count / 1e9:.3g}") == WINDOWS[window]


@pytest.mark.parametrize(("window", "compared"), [(3, 36_100), (9, 309_136), (15, 817_216)])
def test_windows_clipped_at_the_borders_hold_fewer(window, compared):
    assert products(window)[1] == 19 * compared * 640
