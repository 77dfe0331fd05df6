"""The toy world: clips of one sprite moving over a patterned background, drawn by formulas.

Because every clip is drawn, every edit has an exact ground truth: `edit` changes attributes and keeps the path, so
the edited clip is drawn just as the source was. Everything is vectorised over n clips; sizes are in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

SIZE = 64  # pixels, height and width
FRAMES = 8

SHAPES = ("square", "circle", "triangle", "cross")
COLORS = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.10, 0.80, 0.20),
    "blue": (0.15, 0.25, 0.95),
    "yellow": (0.95, 0.90, 0.10),
    "white": (0.97, 0.97, 0.97),
    "magenta": (0.90, 0.15, 0.85),
}
# Sprites are vivid and backgrounds muted, each with words of its own, so that a caption binds without ambiguity.
BACKGROUNDS = {
    "gray": (0.45, 0.45, 0.45),
    "navy": (0.12, 0.14, 0.40),
    "olive": (0.40, 0.42, 0.12),
    "brown": (0.42, 0.26, 0.14),
    "teal": (0.10, 0.42, 0.42),
    "plum": (0.36, 0.14, 0.36),
}
PATTERNS = ("plain", "gradient", "striped", "checkered")
COLOR_VALUES = torch.tensor(list(COLORS.values()))
BACKGROUND_VALUES = torch.tensor(list(BACKGROUNDS.values()))
CHOICES = {"shape": len(SHAPES), "color": len(COLORS), "background": len(BACKGROUNDS), "pattern": len(PATTERNS)}


@dataclass(frozen=True)
class Clips:
    """What is drawn in n clips: four named attributes, and the geometry that an edit keeps."""

    shape: Tensor  # [n] index into SHAPES
    color: Tensor  # [n] index into COLORS
    background: Tensor  # [n] index into BACKGROUNDS
    pattern: Tensor  # [n] index into PATTERNS
    radius: Tensor  # [n] pixels
    phase: Tensor  # [n, 2] offset of the pattern, pixels
    orientation: Tensor  # [n] 0 vertical, 1 horizontal, 2 diagonal
    center: Tensor  # [n, F, 2] (x, y) of the sprite, pixels

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, index) -> Clips:
        """The chosen clips; `index` is a slice or an index tensor, so the result is again a batch."""
        return Clips(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device) -> Clips:
        """The same clips there, where they are then rendered."""
        return Clips(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def draw(n: int, generator: torch.Generator, frames: int = FRAMES) -> Clips:
    """n clips with random attributes and paths (a line, a sine or a bounce) that stay inside the picture."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    def pick(k: int) -> Tensor:
        return torch.randint(0, k, (n,), generator=generator)

    attributes = {name: pick(k) for name, k in CHOICES.items()}
    radius = uniform(9.5, 12.5)
    low = (radius + 1)[:, None, None]
    span = SIZE - 2 * low
    path = torch.stack([kind(uniform, low, span, frames) for kind in (_line, _sine, _bounce)])
    center = path[pick(3), torch.arange(n)]
    # Reflect at the walls: a no-op for paths that never leave the box.
    center = low + span - ((center - low).remainder(2 * span) - span).abs()
    return Clips(**attributes, radius=radius, phase=uniform(0, 32, 2), orientation=pick(3), center=center)


def _line(uniform, low, span, frames):
    """From one random point to another, at least 14 pixels apart."""
    start = low + span * uniform(0, 1, 1, 2)
    move = low + span * uniform(0, 1, 1, 2) - start
    move = move * (14 / move.norm(dim=-1, keepdim=True).clamp(min=1e-3)).clamp(min=1)
    return start + move * torch.linspace(0, 1, frames)[None, :, None]


def _sine(uniform, low, span, frames):
    """Along one axis, swinging on the other."""
    along = _line(uniform, low, span, frames)[..., :1]
    swing, cycles, phase = uniform(5, 10, 1), uniform(0.6, 1.3, 1), uniform(0, 2 * math.pi, 1)
    middle = low[..., 0] + swing + (span[..., 0] - 2 * swing).clamp(min=0) * uniform(0, 1, 1)
    across = middle + swing * torch.sin(2 * math.pi * cycles * torch.linspace(0, 1, frames) + phase)
    path = torch.cat([along, across[..., None]], -1)
    return torch.where(uniform(0, 1, 1, 1) < 0.5, path, path.flip(-1))


def _bounce(uniform, low, span, frames):
    """Constant speed; the walls reflect it (see `draw`)."""
    speed, angle = uniform(4, 7, 1), uniform(0, 2 * math.pi, 1)
    velocity = torch.stack([speed * angle.cos(), speed * angle.sin()], -1)
    return low + span * uniform(0, 1, 1, 2) + velocity * torch.arange(frames)[None, :, None]


def edit(clips: Clips, generator: torch.Generator, attributes: tuple[str, ...] = ("shape", "color")) -> Clips:
    """The same clips with each named attribute changed to another value; path, size and phase stay.

    Raises:
        ValueError: an attribute is not one of shape, color, background, pattern.
    """
    unknown = set(attributes) - set(CHOICES)
    if unknown:
        raise ValueError(f"no attribute {sorted(unknown)}: want some of {list(CHOICES)}")
    changed = {}
    for name in sorted(attributes):
        old = getattr(clips, name)
        changed[name] = (old + torch.randint(1, CHOICES[name], old.shape, generator=generator)) % CHOICES[name]
    return replace(clips, **changed)


def pixel_grid(device="cpu") -> tuple[Tensor, Tensor]:
    """(x, y) of pixel centres, each [SIZE, SIZE]."""
    middle = torch.arange(SIZE, device=device) + 0.5
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    return x, y


def sprite_alpha(clips: Clips) -> Tensor:
    """[n, F, H, W] in 0..1: the sprite's coverage of each pixel (edges are anti-aliased over one pixel)."""
    device = clips.center.device
    x, y = pixel_grid(device)
    x = x - clips.center[..., 0, None, None]
    y = y - clips.center[..., 1, None, None]
    r = clips.radius[:, None, None, None]
    ax, ay = x.abs(), y.abs()
    # Signed distances, negative inside, in the order of SHAPES.
    square = torch.maximum(ax, ay) - 0.86 * r
    circle = torch.hypot(x, y) - r
    triangle = torch.maximum(math.sqrt(3) / 2 * ax - y / 2 - 0.55 * r, y - 0.72 * r)
    cross = torch.minimum(torch.maximum(ax - r, ay - 0.36 * r), torch.maximum(ax - 0.36 * r, ay - r))
    distance = torch.stack([square, circle, triangle, cross])[clips.shape, torch.arange(len(clips), device=device)]
    return (0.5 - distance).clamp(0, 1)


def render_background(clips: Clips) -> Tensor:
    """[n, 3, H, W] in 0..1: the picture behind the sprite."""
    device = clips.center.device
    x, y = pixel_grid(device)
    phase_x, phase_y = clips.phase[:, 0, None, None], clips.phase[:, 1, None, None]
    orientation = clips.orientation[:, None, None]
    along = torch.where(orientation == 0, x, torch.where(orientation == 1, y, (x + y) * math.sqrt(0.5)))

    def wave(z: Tensor, period: float) -> Tensor:
        return (3 * torch.sin(2 * math.pi * z / period)).clamp(-1, 1)

    ramp = along / along.amax((1, 2), keepdim=True) * 2 - 1
    shade = torch.stack(
        [
            torch.zeros_like(along),
            torch.where(phase_y < 16, ramp, -ramp),
            wave(along + phase_x, 16),
            wave(x + phase_x, 32) * wave(y + phase_y, 32),
        ]
    )[clips.pattern, torch.arange(len(clips), device=device)]
    return (BACKGROUND_VALUES.to(device)[clips.background][:, :, None, None] * (1 + 0.55 * shade[:, None])).clamp(0, 1)


def render(clips: Clips) -> tuple[Tensor, Tensor]:
    """Returns (video [n, F, 3, H, W] in 0..1, alpha [n, F, H, W] in 0..1)."""
    alpha = sprite_alpha(clips)
    color = COLOR_VALUES.to(clips.color.device)[clips.color][:, None, :, None, None]
    video = torch.lerp(render_background(clips)[:, None], color, alpha[:, :, None])
    return video, alpha


def captions(clips: Clips) -> list[str]:
    """One sentence a clip: "a red square on a teal striped background"."""
    colors, backgrounds = list(COLORS), list(BACKGROUNDS)
    return [
        f"a {colors[c]} {SHAPES[s]} on a {backgrounds[b]} {PATTERNS[p]} background"
        for s, c, b, p in zip(*(getattr(clips, name).tolist() for name in CHOICES))
    ]


def instructions(source: Clips, target: Clips) -> list[str]:
    """One sentence a clip that turns source into target, naming only what changes."""
    colors, backgrounds = list(COLORS), list(BACKGROUNDS)
    sentences = []
    for i in range(len(source)):
        changed = {name for name in CHOICES if getattr(source, name)[i] != getattr(target, name)[i]}
        color, shape = colors[target.color[i]], SHAPES[target.shape[i]]
        parts = []
        if {"shape", "color"} <= changed:
            parts.append(f"turn it into a {color} {shape}")
        elif "shape" in changed:
            parts.append(f"turn the {SHAPES[source.shape[i]]} into a {shape}")
        elif "color" in changed:
            parts.append(f"make it {color}")
        if changed & {"background", "pattern"}:
            parts.append(f"make the background {backgrounds[target.background[i]]} {PATTERNS[target.pattern[i]]}")
        sentences.append(" and ".join(parts))
    return sentences


GRAMMAR = """
a an the on with into in to of and background make turn change it video moving replace sprite shape color style photo
"""
WORDS = (*GRAMMAR.split(), *SHAPES, *COLORS, *BACKGROUNDS, *PATTERNS)
