"""Scenes of none, one or two sprites that cross and hide each other: drawn by formulas as the clips of `world` are.

A scene always has two sprites, of which some are shown; so to remove a sprite is to stop showing it, to add one is to
show it, and the truth of either is drawn. A scene that shows one sprite is to the bit the clip that `world` renders.
The two never have the same color, so that a name such as "a red square" means one of them, and an edge can be seen
where one hides the other.

It is long because scenes, their masks, their words and their edits are one vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from . import world
from .world import Clips
from .world import draw as draw_clips

MOST = 2  # sprites
TRIES = 12  # paths of the second sprite, of which the one that suits best is taken
KINDS = ("cross", "apart")


@dataclass(frozen=True)
class Scenes:
    """What is drawn in n scenes. Fields of sprites have an axis of 2 after the first."""

    shape: Tensor  # [n, 2] index into world.SHAPES
    color: Tensor  # [n, 2] index into world.COLORS, never the same twice
    radius: Tensor  # [n, 2] pixels
    center: Tensor  # [n, 2, F, 2] (x, y), pixels
    shown: Tensor  # [n, 2] bool
    front: Tensor  # [n] 0 or 1: the sprite that hides the other where they overlap
    background: Tensor  # [n] index into world.BACKGROUNDS
    pattern: Tensor  # [n] index into world.PATTERNS
    phase: Tensor  # [n, 2] offset of the pattern, pixels
    orientation: Tensor  # [n] 0 vertical, 1 horizontal, 2 diagonal

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, index) -> Scenes:
        """The chosen scenes; `index` is a slice or an index tensor, so the result is again a batch."""
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @property
    def count(self) -> Tensor:
        """[n] how many sprites are shown."""
        return self.shown.sum(1)

    def sprite(self, which: int) -> Clips:
        """One of the sprites alone on the background, whether it is shown or not."""
        own = {name: getattr(self, name)[:, which] for name in ("shape", "color", "radius", "center")}
        return Clips(**own, **{name: getattr(self, name) for name in ("background", "pattern", "phase", "orientation")})

    def at(self, frames: Tensor) -> Scenes:
        """The same scenes with k frames chosen for each: `frames` is [n, k]."""
        return replace(self, center=self.center[torch.arange(len(self))[:, None], :, frames].transpose(1, 2))


def of_clips(clips: Clips, second: Clips) -> Scenes:
    """Scenes that show the sprite of `clips`, and could show that of `second` behind it.

    Raises:
        ValueError: a color is the same in both.
    """
    if (clips.color == second.color).any():
        raise ValueError("the two sprites of a scene have the same color: give the second another")
    both = {name: torch.stack([getattr(c, name) for c in (clips, second)], 1) for name in ("shape", "color", "radius")}
    n = len(clips)
    return Scenes(
        **both,
        center=torch.stack([clips.center, second.center], 1),
        shown=torch.tensor([True, False]).expand(n, -1),
        front=torch.zeros(n, dtype=torch.long),
        **{name: getattr(clips, name) for name in ("background", "pattern", "phase", "orientation")},
    )


def draw(
    n: int,
    generator: torch.Generator,
    counts: tuple[int, ...] = (0, 1, 2),
    kinds: tuple[str, ...] = KINDS,
    frames: int = world.FRAMES,
) -> Scenes:
    """n scenes with random attributes, each with one of `counts` sprites: the first, or both.

    Args:
        kinds: how two sprites move: "cross", apart at both ends and over each other between; or "apart", as far from
            each other as some path allows.

    Raises:
        ValueError: a count or a kind that is not known.
    """
    if not counts or not {*counts} <= {*range(MOST + 1)} or not kinds or not {*kinds} <= {*KINDS}:
        raise ValueError(f"want counts of 0 to {MOST} and kinds of {KINDS}, got {counts} and {kinds}")
    first = draw_clips(n, generator, frames)
    tries = draw_clips(n * TRIES, generator, frames)
    number = torch.tensor(counts)[torch.randint(len(counts), (n,), generator=generator)]
    kind = torch.tensor([k == "cross" for k in kinds])[torch.randint(len(kinds), (n,), generator=generator)]
    apart = (tries.center.unflatten(0, (n, TRIES)) - first.center[:, None]).norm(dim=-1)  # [n, TRIES, F]
    reach = first.radius[:, None] + tries.radius.unflatten(0, (n, TRIES))
    ends = torch.minimum(torch.minimum(apart[..., 0], apart[..., -1]), reach)
    nearest = apart.amin(-1)
    best = torch.where(kind[:, None], ends - nearest, nearest).argmax(1)
    second = tries[torch.arange(n) * TRIES + best]
    other = (first.color + torch.randint(1, len(world.COLORS), (n,), generator=generator)) % len(world.COLORS)
    scenes = of_clips(first, replace(second, color=other))
    front = torch.randint(MOST, (n,), generator=generator)
    return replace(scenes, shown=torch.arange(MOST) < number[:, None], front=front)


# ---- pictures -------------------------------------------------------------------------------------------------------


def visible(scenes: Scenes) -> Tensor:
    """[n, 2, F, H, W] in 0..1: what each sprite covers of each pixel and the other does not hide; 0 if not shown."""
    return _unhidden(whole(scenes), scenes.front)


def _unhidden(alpha: Tensor, front: Tensor) -> Tensor:
    is_front = (torch.arange(MOST) == front[:, None])[:, :, None, None, None]
    return torch.where(is_front, alpha, alpha * (1 - alpha.flip(1)))


def whole(scenes: Scenes) -> Tensor:
    """[n, 2, F, H, W] in 0..1: what each sprite would cover if nothing hid it; 0 if not shown."""
    alpha = torch.stack([world.sprite_alpha(scenes.sprite(k)) for k in range(MOST)], 1)
    return alpha * scenes.shown[:, :, None, None, None]


def render(scenes: Scenes) -> tuple[Tensor, Tensor]:
    """(video [n, F, 3, H, W] in 0..1, the `visible` masks [n, 2, F, H, W])."""
    rows, alpha = torch.arange(len(scenes)), whole(scenes)
    video = world.render_background(scenes.sprite(0))[:, None]
    for k in (1 - scenes.front, scenes.front):  # the one behind, then the one in front
        color = world.COLOR_VALUES[scenes.color[rows, k]][:, None, :, None, None]
        video = torch.lerp(video, color, alpha[rows, k][:, :, None])
    return video, _unhidden(alpha, scenes.front)


# ---- words ----------------------------------------------------------------------------------------------------------


def names(scenes: Scenes, which: int) -> list[str]:
    """What one of the sprites is called, shown or not: "a red square"."""
    colors, looks = list(world.COLORS), zip(scenes.color[:, which].tolist(), scenes.shape[:, which].tolist())
    return [f"a {colors[c]} {world.SHAPES[s]}" for c, s in looks]


def captions(scenes: Scenes) -> list[str]:
    """One sentence a scene: "a red square and a blue circle on a teal striped background", and "a teal striped
    background" where nothing is shown. One sprite is described as `world.captions` does."""
    return [" on ".join(filter(None, [" and ".join(filter(None, sprites)), g])) for *sprites, g in _parts(scenes)]


def negatives(source: Scenes, target: Scenes) -> list[str]:
    """What an edit takes away, as a negative prompt says it: "a red square", "a teal striped background", or both with
    "and"; "" for an edit that only adds."""
    taken = []
    for before, after in zip(_parts(source), _parts(target)):
        taken.append(" and ".join(old for old, new in zip(before, after) if old and old != new))
    return taken


def _parts(scenes: Scenes) -> list[tuple[str, ...]]:
    """(first sprite, second sprite, background) of each scene; "" for a sprite that is not shown."""
    shown = scenes.shown.T.tolist()
    sprites = [[name * seen for name, seen in zip(names(scenes, k), shown[k])] for k in range(MOST)]
    return list(zip(*sprites, _grounds(scenes)))


def _grounds(scenes: Scenes) -> list[str]:
    backgrounds = list(world.BACKGROUNDS)
    pairs = zip(scenes.background.tolist(), scenes.pattern.tolist())
    return [f"a {backgrounds[b]} {world.PATTERNS[p]} background" for b, p in pairs]


# ---- edits ----------------------------------------------------------------------------------------------------------


def change(
    scenes: Scenes, generator: torch.Generator, which: int, attributes: tuple[str, ...] = ("shape", "color")
) -> Scenes:
    """One sprite gets another value of each named attribute, and never the color of the other sprite.

    Raises:
        ValueError: an attribute that is not shape or color, or a scene that does not show the sprite.
    """
    if unknown := {*attributes} - {"shape", "color"}:
        raise ValueError(f"a sprite has no attribute {sorted(unknown)}: want shape, color or both")
    _expect(scenes, which, shown=True)
    changed = {}
    for name in sorted(attributes):
        values = getattr(scenes, name).clone()
        old = values[:, which]
        taken = values.sort(1).values if name == "color" else old[:, None]
        new = torch.randint(world.CHOICES[name] - taken.shape[1], old.shape, generator=generator)
        for value in taken.unbind(1):  # ascending: step over each value that is taken
            new = new + (new >= value)
        values[:, which] = new
        changed[name] = values
    return replace(scenes, **changed)


def remove(scenes: Scenes, which: int) -> Scenes:
    """One sprite is no longer there. Raises ValueError where it is not shown."""
    _expect(scenes, which, shown=True)
    return _show(scenes, which, False)


def add(scenes: Scenes, which: int) -> Scenes:
    """A sprite that was not there is. Raises ValueError where it is shown."""
    _expect(scenes, which, shown=False)
    return _show(scenes, which, True)


def change_background(
    scenes: Scenes, generator: torch.Generator, attributes: tuple[str, ...] = ("background", "pattern")
) -> Scenes:
    """Another background behind the same sprites; where a pattern begins and which way it runs stay.

    Raises:
        ValueError: an attribute that is not background or pattern.
    """
    if unknown := {*attributes} - {"background", "pattern"}:
        raise ValueError(f"a background has no attribute {sorted(unknown)}: want background, pattern or both")
    edited = world.edit(scenes.sprite(0), generator, attributes)
    return replace(scenes, background=edited.background, pattern=edited.pattern)


def _show(scenes: Scenes, which: int, shown: bool) -> Scenes:
    return replace(scenes, shown=torch.where(torch.arange(MOST) == which, shown, scenes.shown))


def _expect(scenes: Scenes, which: int, shown: bool) -> None:
    if which not in range(MOST):
        raise ValueError(f"there is no sprite {which}: want 0 or 1")
    wrong = (scenes.shown[:, which] != shown).nonzero()[:, 0].tolist()
    if wrong:
        state = "does not show" if shown else "already shows"
        raise ValueError(f"scene {wrong[0]} {state} sprite {which}: choose scenes by `shown`")


# ---- the edits that are measured ------------------------------------------------------------------------------------

EDITS = {  # name -> (sprites of the source, the edit)
    "one of two": (2, lambda s, g: change(s, g, 0)),
    "both": (2, lambda s, g: change(change(s, g, 0), g, 1)),
    "remove": (2, lambda s, g: remove(s, 1)),
    "add": (1, lambda s, g: add(s, 1)),
    "background": (2, change_background),
}


def draw_edits(kind: str, n: int, generator: torch.Generator) -> tuple[Scenes, Scenes]:
    """(n sources, their edits of one of the kinds in EDITS)."""
    count, edit = EDITS[kind]
    source = draw(n, generator, (count,))
    return source, edit(source, generator)
