"""The toy world's tokenizer and text encoder: real CLIP classes with a vocabulary of two dozen words.

The BPE merges are made so that each word of the world is one token; other words fall back to letters.
"""

from __future__ import annotations

import json
import shutil
import string
from collections import Counter
from itertools import pairwise
from pathlib import Path

from .world import WORDS

MAX_TOKENS = 16
WIDTH = 64
END = "</w>"


def byte_pairs(words: tuple[str, ...]) -> tuple[dict[str, int], list[str]]:
    """(vocabulary, merges): byte-pair encoding run until every word is a single token."""
    letters = [*string.ascii_lowercase, *",.-'", *string.digits]
    vocabulary = letters + [c + END for c in letters]
    merges: list[str] = []
    spelled = {w: [*w[:-1], w[-1] + END] for w in sorted(set(words))}
    while pairs := Counter(pair for parts in spelled.values() for pair in pairwise(parts)):
        pair = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(" ".join(pair))
        joined = "".join(pair)
        if joined not in vocabulary:
            vocabulary.append(joined)
        spelled = {w: _merge(parts, pair) for w, parts in spelled.items()}
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(vocabulary)}, merges


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def make_tokenizer(folder: Path):
    """Writes the tokenizer's files to `folder` and returns it, a `CLIPTokenizer`."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = byte_pairs(WORDS)
    end = "<|endoftext|>"
    special = {"bos_token": "<|startoftext|>", "eos_token": end, "unk_token": end, "pad_token": end}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_TOKENS, "do_lower_case": True, **special}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    return CLIPTokenizer.from_pretrained(folder)


def make_text_encoder(tokenizer):
    """An untrained `CLIPTextModel` of 0.1 M parameters for `tokenizer`."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def write_portably(folder: Path, tokenizer: Path) -> None:
    """Makes a model folder that a new transformers has saved one that old ones read, too.

    From 5.6 on, CLIPTextModel is saved without the level `text_model.` around its names, which all versions understand;
    and from 5.0 on, tokenizers without the `vocab.json` and `merges.txt` that those before want.
    """
    from safetensors.torch import load_file, save_file

    file = folder / "text_encoder" / "model.safetensors"
    weights = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        shutil.copy(tokenizer / name, folder / "tokenizer" / name)


def token_ids(tokenizer, texts: list[str]):
    """[n, MAX_TOKENS] int64, padded with the end token as CLIP does."""
    return tokenizer(
        texts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids
