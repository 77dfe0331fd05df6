"""Operators that never hold what they only pass through. Each has a reference, a chunked torch and a Triton form."""

from .attention_map import attention_map, map_distance
from .em import em_attention, em_bases, em_means, em_step, em_values
from .gather_attention import gather_attention
from .lists import Lists
from .merged_attention import merged_attention
from .nearest import Pairs, nearest
from .str_loss import reduce_rows, str_loss, str_rows, str_score
from .windowed_topk import windowed_topk

__all__ = [
    "Lists",
    "Pairs",
    "attention_map",
    "em_attention",
    "em_bases",
    "em_means",
    "em_step",
    "em_values",
    "gather_attention",
    "map_distance",
    "merged_attention",
    "nearest",
    "reduce_rows",
    "str_loss",
    "str_rows",
    "str_score",
    "windowed_topk",
]
