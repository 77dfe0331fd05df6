"""STEM inversion: a video inverted through a few hundred bases that all its frames share.

paper    A Video is Worth 256 Bases, Li et al. 2024 (arXiv 2312.05856)
needs    a model with spatial self-attention; for an inversion, nothing else
gives    a Control that rewrites self-attention, and an inversion that runs under it
differs  EM sees all frames, as in the paper (`em_frames=8` is the authors' released setting); layers with few tokens
         get fewer bases; `skip_dead` and `shared` are ours. In a pass with gradients (STR-Match's) which token belongs
         to which base is taken as given. What the summary of the paper leaves open (EM on keys head by head, the start
         of the bases, both eps) is as in the released program

In every self-attention layer, for the n tokens of all frames together, starting from random bases mu:

    E   Z[t, k] = softmax over k of key[t] . mu[k] / (|mu[k]| + eps) / temperature
    M   mu[k]   = sum over t of Z[t, k] key[t] / (sum over t of Z[t, k] + eps)

and after the last round the values are V[k], the same mean of the values. Every frame then attends to (mu, V):
n K instead of n n products. The E-step is nearly hard at temperature 0.01, so a base may win no token. The released
rule lets it fade to 0, where it still takes its share of each softmax; how many do is recorded at every step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, get_args

import torch
from einops import rearrange
from torch import Tensor

from ..engine.call import Attend, Call, Evaluation
from ..engine.plan import Control, Needs, Slot
from ..engine.seeds import generator_for
from ..kernels import em_means, em_step
from ..kernels.em import MAX_SIZE

log = logging.getLogger(__name__)

Space = Literal["key_per_head", "hidden"]
Init = Literal["normal", "random_tokens"]
EPS = 1e-4  # of both steps


@dataclass
class Tally:
    """How many bases the layers of one evaluation used, and how many of them won no token."""

    counts: list[int] = field(default_factory=list)
    dead: list[Tensor] = field(default_factory=list)

    def add(self, mass: Tensor) -> None:
        """mass [R, ..., K]"""
        self.counts.append(mass.shape[-1])
        self.dead.append((mass <= EPS).float().mean())


@dataclass(frozen=True)
class STEMAttention(Control):
    """Every self-attention on the bases of the whole clip.

    Args:
        bases: K, at least 1; the paper's 256.
        iterations: rounds of EM, at least 1; 5.
        temperature: of the E-step, over 0; 0.01.
        space: "key_per_head": EM over the keys of each head, as released; "hidden": over the tokens that keys and
            values are projected from, and the bases are projected, as the paper words it.
        init: bases start as "normal" noise with the tokens' mean and deviation, or as "random_tokens".
        em_frames: EM sees all frames (0), or this many at a time, on their own: 8 is the authors' released setting.
        skip_dead: leave bases that no token chose out of the softmax. Off, as released.
        tokens_per_base: a layer of n tokens gets at most n / this many bases; at 512x512 and 8 frames or more this
            changes nothing. 0: no such limit.
        shared: in an edit, all rows use the source's responsibilities, so that base k means the same in each (ours).
            With FateZero its maps are to bases.
        seed: of the starts, drawn anew for every step and layer.

    Raises:
        ValueError: a number out of range or an unknown choice.
    """

    slot: ClassVar[Slot] = "keys"

    bases: int = 256
    iterations: int = 5
    temperature: float = 0.01
    space: Space = "key_per_head"
    init: Init = "normal"
    em_frames: int = 0
    skip_dead: bool = False
    tokens_per_base: int = 2
    shared: bool = False
    seed: int = 0

    def __post_init__(self):
        for name, least in (("bases", 1), ("iterations", 1), ("em_frames", 0), ("tokens_per_base", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        if not self.temperature > 0:
            raise ValueError(f"the temperature must be positive, got {self.temperature}")
        for name, kind in {"space": Space, "init": Init}.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"no {name} '{getattr(self, name)}': want one of {', '.join(get_args(kind))}")

    def needs(self) -> Needs:
        grouped = self.em_frames > 0
        return Needs(self.shared, not grouped, picks_frames=grouped, framewise=grouped, keys="bases")

    def evaluate(self, evaluation: Evaluation, evaluate: Callable[[Evaluation], Tensor]) -> Tensor:
        tally, frames = Tally(), evaluation.latents.shape[1]
        evaluation = evaluation.share(self, tally)
        if 0 < self.em_frames < frames:
            groups = [range(f, min(f + self.em_frames, frames)) for f in range(0, frames, self.em_frames)]
            output = torch.cat([evaluate(replace(evaluation.select(g), whole=True)) for g in groups], 1)
        else:
            output = evaluate(replace(evaluation, whole=True))
        if tally.counts:
            dead = torch.stack(tally.dead).mean()
            evaluation.run.monitor.record(step=evaluation.run.step, fewest_bases=min(tally.counts), dead_bases=dead)
            if evaluation.run.step == 0:
                few = f" (cut to {min(tally.counts)} where tokens are few)" if min(tally.counts) < self.bases else ""
                log.info("STEM: %d bases%s, %.0f %% of them without a token", self.bases, few, 100 * dead)
        return output

    def attention(self, call: Call, attend: Attend) -> Tensor:
        if call.site.kind != "spatial":
            return attend(call)
        k, v, mass = self._bases_of_heads(call) if self.space == "key_per_head" else self._bases_of_layer(call)
        if (tally := call.run.shared.get(self)) is not None:
            tally.add(mass)
        call = call.with_keys(*(x.to(call.q.dtype)[:, None] for x in (k, v)))
        return attend(_unseen(call, mass <= EPS) if self.skip_dead else call)

    def _bases_of_heads(self, call: Call) -> tuple[Tensor, Tensor, Tensor]:
        """(keys, values [R, H, K, D], mass [R or 1, H, K])"""
        k, v = (rearrange(x, "r f h m d -> r h (f m) d") for x in (call.k, call.v))
        k = k.contiguous()  # once, and not at every round
        read = rearrange(call.source.k, "r f h m d -> r h (f m) d").contiguous() if self.shared else k
        (keys, values), mass = self._summed_up(read, (k, v), call)
        return keys, values, mass

    def _bases_of_layer(self, call: Call) -> tuple[Tensor, Tensor, Tensor]:
        """The same by EM over the tokens that keys are projected from; mass [R or 1, 1, K]."""
        flat = [rearrange(x, "r f m c -> r (f m) c") for x in (call.key_tokens, call.tokens)]
        read = rearrange(call.source.tokens, "r f m c -> r (f m) c") if self.shared else flat[0]
        alike = call.tokens is call.key_tokens
        means, mass = self._summed_up(read, flat[:1] if alike else flat, call)
        k, v = call.project(means[0][:, None].to(call.tokens.dtype))
        if not alike:
            _, v = call.project(means[1][:, None].to(call.tokens.dtype))
        return k[:, 0], v[:, 0], mass[:, None]

    def _summed_up(self, tokens: Tensor, values: Sequence[Tensor], call: Call) -> tuple[Sequence[Tensor], Tensor]:
        """(the bases' means [R, ..., K, W] of each of some values [R, ..., n, W], mass), by EM over tokens
        [R or 1, ..., n, D]."""
        tokens = tokens.detach()  # nearly hard choices: their slope at temperature 0.01 would drown every other
        return self._means(tokens, values, self._estimated(tokens, call))

    def _estimated(self, tokens: Tensor, call: Call) -> Tensor:
        """The bases [R or 1, ..., K, D] that go into the last round."""
        start = self._start(tokens, generator_for(self.seed, call.run.step, call.site.layer))
        tokens, bases = (x.flatten(0, -3) for x in (tokens, start))  # once, and not in every round
        for _ in range(self.iterations - 1):
            call.run.monitor.check()
            bases, _ = em_step(tokens, bases, temperature=self.temperature, eps=EPS, keep_dead=False)
        call.run.monitor.check()
        return bases.view(start.shape)

    def _means(self, tokens: Tensor, values: Sequence[Tensor], bases: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """(means of each of the values, mass), by the responsibilities of the last round: values in one sweep, where
        that is not too wide for the kernel."""
        tokens, bases = (x.expand(len(values[0]), *x.shape[1:]) for x in (tokens, bases))
        numbers, widths = {"temperature": self.temperature, "eps": EPS}, [v.shape[-1] for v in values]
        if sum(widths) > MAX_SIZE:
            means, masses = zip(*(em_means(tokens, v, bases, **numbers) for v in values))
            return means, masses[0]
        means, mass = em_means(tokens, torch.cat(list(values), -1), bases, **numbers)
        return means.split(widths, -1), mass

    def _start(self, tokens: Tensor, generator: torch.Generator) -> Tensor:
        """[R, ..., K, D]; rows and heads draw the same tokens, and rows the same noise."""
        n, width = tokens.shape[-2:]
        count = min(self.bases, max(1, n // self.tokens_per_base)) if self.tokens_per_base else self.bases
        if self.init == "random_tokens":
            return tokens[..., torch.randperm(n, generator=generator)[:count].to(tokens.device), :]
        tokens = tokens if tokens.dtype == torch.float64 else tokens.float()
        mean = tokens.mean(-2, keepdim=True)
        std = (
            (tokens - mean).square_().sum(-2, keepdim=True).div_(max(1, n - 1)).sqrt_()
        )  # `std_mean` is six times as slow
        noise = torch.randn(*tokens.shape[1:-2], count, width, generator=generator)
        return mean + std * noise.to(tokens)


def _unseen(call: Call, dead: Tensor) -> Call:
    """The call with the logits of dead bases [R or 1, H, K] at -inf."""
    barred = torch.zeros_like(dead, dtype=call.q.dtype).masked_fill(dead, -torch.inf)
    return replace(call, bias=barred[:, None, :, None])
