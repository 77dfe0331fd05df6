"""Expectation-maximisation attention: a video's tokens summed up in a few hundred bases (STEM, arXiv:2312.05856).

One EM iteration softly assigns every token to the bases and moves each base to the weighted mean of its tokens:

    Z[t,k] = softmax over k of tokens[t] . bases[k] / (|bases[k]| + eps) / temperature
    mass[k] = sum over t of Z[t,k]
    new[k] = sum over t of Z[t,k] tokens[t] / (mass[k] + eps)

Any number of tokens streams through; Z never exists as a whole. The two eps and their value are those of the authors'
released code. A base that no token chooses has a mass near 0: by default it stays where it was; with
`keep_dead=False` it fades to 0, as in the released code.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..dispatch import Backend, choose, fused_or
from .chunked import em_sums_chunked
from .reference import em_sums_reference

MAX_SIZE = 256


def em_step(
    tokens: Tensor,
    bases: Tensor,
    *,
    temperature: float,
    eps: float = 1e-4,
    keep_dead: bool = True,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """One EM iteration; see the module for the formula.

    Args:
        tokens: [... T D], taken as they are (STEM does not normalise keys).
        bases: [... K D], with the same leading dimensions (heads, or batch and heads).
        temperature: of the softmax over bases; STEM uses 0.01.
        eps: guards both divisions.
        keep_dead: a base with mass <= eps keeps its old value; otherwise it fades towards 0.
    Returns:
        bases: [... K D] float32 (float64 for float64 tokens).
        mass: [... K], how many tokens each base stands for; adds up to T.
    Raises:
        ValueError: an argument does not fit the above.

    The Triton kernels have no backward.
    """
    sums, mass = _sums(tokens, tokens, bases, temperature, eps, backend)
    new = _mean(sums, mass, eps)
    if keep_dead:
        new = torch.where((mass > eps)[..., None], new, bases.to(new.dtype))
    return new, mass


def em_means(
    tokens: Tensor,
    values: Tensor,
    bases: Tensor,
    *,
    temperature: float,
    eps: float = 1e-4,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """The mean of `values` [... T W] under the responsibilities that `bases` take, for every base.

    STEM's values go by the last E-step, so give the bases that go *into* the last round, not its result; and with keys
    and values side by side, the round and its values are one sweep over the tokens.

    Returns:
        means: [... K W] float32 (float64 for float64 tokens). Dead bases fade to 0.
        mass: [... K]. Other arguments: see `em_step`.
    """
    sums, mass = _sums(tokens, values, bases, temperature, eps, backend)
    return _mean(sums, mass, eps), mass


def em_values(tokens: Tensor, values: Tensor, bases: Tensor, **options) -> Tensor:
    """The means of `em_means` alone."""
    return em_means(tokens, values, bases, **options)[0]


def em_bases(
    k: Tensor,
    v: Tensor,
    bases: Tensor,
    *,
    temperature: float,
    iterations: int = 5,
    eps: float = 1e-4,
    keep_dead: bool = True,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys `k` [... T D] and values `v` [... T W] summed up in K bases, starting from `bases` [... K D].

    Returns:
        bases [... K D], their values [... K W] and mass [... K], both by the responsibilities of the last E-step.
        Other arguments: see `em_step`.
    """
    if iterations < 1:
        raise ValueError(f"want at least one EM iteration, got {iterations}")
    options = {"temperature": temperature, "eps": eps, "backend": backend}
    for _ in range(iterations - 1):
        bases, _ = em_step(k, bases, keep_dead=keep_dead, **options)
    if k.shape[-1] + v.shape[-1] > MAX_SIZE:
        new, mass = em_step(k, bases, keep_dead=keep_dead, **options)
        return new, em_values(k, v, bases, **options), mass
    means, mass = em_means(k, torch.cat([k, v], -1), bases, **options)
    new, values = means.split([k.shape[-1], v.shape[-1]], -1)
    if keep_dead:
        new = torch.where((mass > eps)[..., None], new, bases.to(new.dtype))
    return new, values, mass


def em_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bases: Tensor,
    *,
    temperature: float,
    iterations: int = 5,
    scale: float | None = None,
    eps: float = 1e-4,
    keep_dead: bool = True,
    skip_dead: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """Attention of `q` [... M D] to the bases of (k, v) instead of to every token: STEM's self-attention.

    softmax(q . bases * scale) values, with `em_bases(k, v, bases)`; bases are not weighted by their mass.

    Args:
        scale: logit scale. Default: D ** -0.5.
        skip_dead: leave bases with mass <= eps out of the softmax.
    Returns:
        [... M W], in the dtype of q. Other arguments: see `em_step`.
    """
    if q.ndim != k.ndim or q.shape[:-2] != k.shape[:-2] or q.shape[-1] != k.shape[-1]:
        raise ValueError(f"want q [... M D] like k [... T D], got q {[*q.shape]}, k {[*k.shape]}")
    bases, values, mass = em_bases(
        k, v, bases, temperature=temperature, iterations=iterations, eps=eps, keep_dead=keep_dead, backend=backend
    )
    alive = (mass > eps)[..., None, :] if skip_dead else None
    return scaled_dot_product_attention(q, bases.to(q.dtype), values.to(q.dtype), alive, scale=scale)


def _sums(
    tokens: Tensor, values: Tensor, bases: Tensor, temperature: float, eps: float, backend: Backend
) -> tuple[Tensor, Tensor]:
    """Z^T values [... K W] and mass [... K], in float32 or float64."""
    _check(tokens, values, bases, temperature, eps)
    chosen = choose(backend, tokens, _obstacle(tokens, values, bases))
    flat = (x if x.ndim == 3 else x.reshape(-1, *x.shape[-2:]) for x in (tokens, values, bases))
    if chosen == "triton":
        fused = fused_or(em_sums_chunked, "em.fused", "em_sums_fused", backend)
        with torch.cuda.device_of(tokens):  # Triton launches on the current device
            sums, mass = fused(*flat, temperature, eps)
    else:
        implementation = em_sums_reference if chosen == "reference" else em_sums_chunked
        sums, mass = implementation(*flat, temperature, eps)
    return (sums, mass) if bases.ndim == 3 else (sums.view(*bases.shape[:-1], -1), mass.view(bases.shape[:-1]))


def _mean(sums: Tensor, mass: Tensor, eps: float) -> Tensor:
    """Of a base without mass 0, also with eps = 0."""
    return sums / (mass + eps).masked_fill_(mass == 0, torch.inf)[..., None]


def _check(tokens: Tensor, values: Tensor, bases: Tensor, temperature: float, eps: float) -> None:
    if (
        min(x.ndim for x in (tokens, values, bases)) < 2
        or tokens.shape[:-1] != values.shape[:-1]
        or tokens.shape[:-2] != bases.shape[:-2]
        or tokens.shape[-1] != bases.shape[-1]
        or 0 in (tokens.numel(), values.numel(), bases.numel())
    ):
        raise ValueError(
            "want tokens [... T D], values [... T W] and bases [... K D], none empty, with equal leading dimensions; "
            f"got {[*tokens.shape]}, {[*values.shape]} and {[*bases.shape]}"
        )
    if not all(x.is_floating_point() for x in (tokens, values, bases)):
        raise ValueError(f"want floating-point tensors, got {tokens.dtype}, {values.dtype} and {bases.dtype}")
    if not tokens.device == values.device == bases.device:
        raise ValueError(
            f"want one device, got tokens, values, bases on {tokens.device}, {values.device}, {bases.device}"
        )
    if temperature <= 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    if eps < 0:
        raise ValueError(f"eps must not be negative, got {eps}")


def _obstacle(tokens: Tensor, values: Tensor, bases: Tensor) -> str | None:
    if max(tokens.shape[-1], values.shape[-1]) > MAX_SIZE:
        return f"token size {max(tokens.shape[-1], values.shape[-1])} is over {MAX_SIZE}"
    if torch.is_grad_enabled() and any(x.requires_grad for x in (tokens, values, bases)):
        return "it has no backward and a gradient is wanted"
    return None
