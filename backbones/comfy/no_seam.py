"""Blocks that core has no seam for (CogVideoX's): for the length of a pass a stand-in has the place of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from .dit import Transformer
from .passes import Pass


class WithoutSeam(Transformer):
    """See `Family`."""

    @contextmanager
    def tapped(self, options: dict, one: Pass) -> Iterator[dict]:
        with ExitStack() as stack:
            given = stack.enter_context(super().tapped(options, one))
            wrappers = {} if given is options else given["patches_replace"]["dit"]
            for attribute, kind in self.layers.lists:
                blocks = getattr(self.network, attribute)
                for index in range(len(blocks)):
                    if (kind, index) in wrappers:
                        stack.enter_context(_standing_in(blocks, index, wrappers[kind, index]))
            yield given


class StandIn(nn.Module):
    """Calls a block as core's `dit` patches would be called. The block is no module of its: no weights are listed
    twice."""

    def __init__(self, block: nn.Module, wrapper: Callable[[dict, dict], dict]):
        super().__init__()

        def original(args: dict) -> dict:
            image, text = block(**args["rest"], **_named(args["img"], args["txt"], args["transformer_options"]))
            return {"img": image, "txt": text}

        self.run, self.original = wrapper, original

    def forward(self, hidden_states, encoder_hidden_states, transformer_options, **rest) -> tuple[Tensor, Tensor]:
        args = {"img": hidden_states, "txt": encoder_hidden_states, "transformer_options": transformer_options}
        out = self.run({**args, "rest": rest}, {"original_block": self.original})
        return out["img"], out["txt"]


def _named(image: Tensor, text: Tensor, options: dict) -> dict:
    return {"hidden_states": image, "encoder_hidden_states": text, "transformer_options": options}


@contextmanager
def _standing_in(blocks: nn.ModuleList, index: int, wrapper: Callable[[dict, dict], dict]) -> Iterator[None]:
    block = blocks[index]
    blocks[index] = StandIn(block, wrapper)
    try:
        yield
    finally:
        blocks[index] = block
