"""Memory fences for kernel tests: a read or write outside a buffer changes a number or breaks a band.

    with Guards() as g:
        out = op(g.input(q), g.input(k))      # backward belongs inside the `with` too

Inputs stand between bands of NaN, so a load without its mask poisons the result. While the `with` is open, whatever
`torch.empty`, `zeros`, `full` (and their `_like`) hand out, outputs and internal buffers alike, stands between bands
too, and `empty` starts as NaN, so a part that is read before it is written shows. On leaving, every band must hold
the bit pattern it started with and every input its values: a store out of place fails even if it stored NaN. In
Triton's interpreter every address is checked as well, so a load from a band fails even if nothing comes of it.
"""

import math
import os
from unittest.mock import patch

import torch

BAND = 4096  # elements on each side: more than any tile is wide, and a multiple of every alignment
_BITS = {  # dtype -> (integer view of the same size, a value no kernel writes; for floats a NaN with a payload)
    torch.float64: (torch.int64, 0x7FF8DEAD_DEADBEEF),
    torch.float32: (torch.int32, 0x7FC0DEAD),
    torch.float16: (torch.int16, 0x7E5A),
    torch.bfloat16: (torch.int16, 0x7FDA),
    torch.int64: (torch.int64, -(2**40) - 77),
    torch.int32: (torch.int32, -(2**30) - 77),
    torch.int16: (torch.int16, -(2**14) - 77),
    torch.int8: (torch.int8, -77),
    torch.uint8: (torch.uint8, 177),
}


class Guards:
    """Fences for one call; see the module. `g.input(x)` fences a copy of an input."""

    def __init__(self):
        self._fenced = []  # (name, whole buffer, elements inside)
        self._inputs = []  # (fenced input, its values)
        self._strayed = []  # what the interpreter saw reach into a band

    def input(self, x: torch.Tensor) -> torch.Tensor:
        view = self._fence("an input", x.shape, x.dtype, x.device)
        view.copy_(x.detach())
        self._inputs.append((view, x.detach().clone()))
        return view.detach().requires_grad_(x.requires_grad)

    def _fence(self, name, shape, dtype, device):
        integer, bits = _BITS[dtype]
        # the bands also grow with the tensor: an index off by a whole row or frame must still land in one
        inside = math.prod(shape)
        band = max(BAND, -(-inside // BAND) * BAND)
        whole = self._real["empty"](inside + 2 * band, dtype=dtype, device=device)
        whole.view(integer).fill_(bits)
        self._fenced.append((f"{name} {list(shape)}", whole, inside))
        return whole[band : band + inside].view(shape)

    def __enter__(self):
        names = ("empty", "zeros", "full", "empty_like", "zeros_like", "full_like")
        self._real = {name: getattr(torch, name) for name in names}
        self._patches = [patch.object(torch, name, self._replacement(name)) for name in names]
        if os.environ.get("TRITON_INTERPRET") == "1":
            self._patches += self._address_checks()
        for p in self._patches:
            p.start()
        return self

    def _address_checks(self):
        from triton.runtime.interpreter import InterpreterBuilder

        def checked(name, mask_at):
            real = getattr(InterpreterBuilder, name)

            def access(builder, *args):
                self._check_addresses(name, args[0].data[args[mask_at].data.astype(bool)])
                return real(builder, *args)

            return patch.object(InterpreterBuilder, name, access)

        return [checked("create_masked_load", 1), checked("create_masked_store", 2)]

    def _check_addresses(self, name, addresses):
        if not addresses.size:
            return
        first, last = int(addresses.min()), int(addresses.max())
        for what, whole, inside in self._fenced:
            start, end = whole.data_ptr(), whole.data_ptr() + whole.nbytes
            if last < start or first >= end:
                continue
            band = (whole.nbytes - inside * whole.element_size()) // 2
            mine = addresses[(addresses >= start) & (addresses < end)]
            low, high = start + band, end - band
            if not ((mine >= low) & (mine < high)).all():
                self._strayed.append(f"{name.removeprefix('create_masked_')} outside {what}")

    def _replacement(self, name):
        real = self._real[name]

        def allocate(*args, **kwargs):
            plain = real(*args, **kwargs)
            if plain.dtype not in _BITS or plain.numel() == 0 or not plain.is_contiguous():
                return plain
            view = self._fence(f"torch.{name}", plain.shape, plain.dtype, plain.device)
            return view if name.startswith("empty") else view.copy_(plain)

        return allocate

    def __exit__(self, kind, error, trace):
        for p in self._patches:
            p.stop()
        if kind is not None:
            return
        assert not self._strayed, f"the kernel reached out of bounds: {self._strayed[0]} ({len(self._strayed)} times)"
        for name, whole, inside in self._fenced:
            integer, bits = _BITS[whole.dtype]
            band = (whole.numel() - inside) // 2
            raw = whole.view(integer)
            assert (raw[:band] == bits).all(), f"something wrote before {name}"
            assert (raw[band + inside :] == bits).all(), f"something wrote after {name}"
        for view, values in self._inputs:
            assert torch.equal(view.view(_BITS[view.dtype][0]), values.view(_BITS[view.dtype][0])), (
                f"the input {list(view.shape)} was changed"
            )
