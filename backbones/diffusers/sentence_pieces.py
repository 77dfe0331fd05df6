"""T5's tokenizer, by the sentencepiece library alone.

A folder of T5 holds `spiece.model`. transformers reads it from version 5 on by way of protobuf, which ComfyUI does not
bring; sentencepiece, which ComfyUI does, is what made the file. What is used of a tokenizer of transformers is here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

FILE = "spiece.model"


@dataclass(frozen=True, eq=False)
class Tokens:
    """One text: lists of ids, or tensors [1, L] where they were asked for."""

    input_ids: list[int] | Tensor
    attention_mask: list[int] | Tensor


class SentencePieces:
    """Texts to ids, as `T5Tokenizer` gives them."""

    def __init__(self, folder: Path):
        try:
            import sentencepiece
        except ImportError as error:
            raise ValueError(f"T5 needs the package sentencepiece ({error}): pip install sentencepiece") from error
        try:
            self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / FILE))
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"'{folder.parent.name}/{folder.name}/{FILE}' is not a whole model of sentencepiece: download it again"
            ) from error
        self.model_max_length = 10**6  # until somebody knows better
        self.end, self.padding = self.pieces.eos_id(), max(0, self.pieces.pad_id())
        self.all_special_ids = [self.padding, self.end, self.pieces.unk_id()]

    def __len__(self) -> int:
        return self.pieces.get_piece_size()

    def __call__(
        self,
        text: str,
        *,
        padding: str | None = None,
        max_length: int | None = None,
        truncation: bool = False,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> Tokens:
        ids = [*self.pieces.encode(text), self.end]
        if truncation and max_length is not None and len(ids) > max_length:
            ids = [*ids[: max_length - 1], self.end]
        given = [1] * len(ids)
        if padding == "max_length" and max_length is not None:
            more = max_length - len(ids)
            ids, given = ids + [self.padding] * more, given + [0] * more
        if return_tensors is None:
            return Tokens(ids, given)
        return Tokens(torch.tensor([ids]), torch.tensor([given]))

    def decode(self, ids: Iterable[int]) -> str:
        return self.pieces.decode(list(ids))

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        return [self.pieces.id_to_piece(i) for i in ids]
