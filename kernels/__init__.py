"""Operators that never hold what they only pass through. Each has a reference, a chunked torch and a Triton form."""

from .attention_map import attention_map
from .str_loss import reduce_rows, str_loss, str_rows, str_score

__all__ = ["attention_map", "reduce_rows", "str_loss", "str_rows", "str_score"]
