"""Models that know nothing but the color under a point, and clips of one square for them."""

import torch

from weft.vision.ports import Candidates, Detection

HEIGHT, WIDTH = 12, 16
RED, BLUE, GRAY = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.5, 0.5)


class ByColor:
    """Answers with the pixels that have the color at the first point, inside the box if there is one."""

    name, follows = "by color", False

    def __init__(self):
        self.looks, self.asked = [], []

    def look(self, frame):
        self.looks.append(frame)

        def ask(prompts):
            self.asked.append(prompts)
            height, width = frame.shape[:2]
            left, top, right, bottom = prompts.box or (0, 0, width, height)
            x, y = prompts.points[0] if prompts.points else ((left + right) / 2, (top + bottom) / 2)
            mask = (frame - frame[round(y), round(x)]).abs().amax(-1) < 0.3
            rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
            mask &= (rows >= top) & (rows <= bottom) & (columns >= left) & (columns <= right)
            for x, y in prompts.not_points:
                mask &= (frame - frame[round(y), round(x)]).abs().amax(-1) >= 0.3
            return Candidates(mask[None], torch.tensor([0.9]), torch.where(mask, 5.0, -5.0)[None])

        return ask


def square(left, top, size=3, color=RED, frame=None):
    frame = torch.tensor(GRAY).expand(HEIGHT, WIDTH, 3).clone() if frame is None else frame
    frame[top : top + size, left : left + size] = torch.tensor(color)
    return frame


def moving(n=6):
    """A red square that moves one pixel to the right in each frame."""
    return torch.stack([square(2 + k, 4) for k in range(n)])


def truth(frames, color=RED):
    return (frames == torch.tensor(color)).all(-1).float()


def gone(n=6, first=3, until=5):
    """The red square is away for some frames, and comes back to where it was."""
    frames = torch.stack([square(4, 4) for _ in range(n)])
    frames[first:until] = torch.tensor(GRAY)
    return frames


class Finder:
    """Finds the red square as 'a square', and worse boxes around it."""

    name = "finder"

    def find(self, frame, phrases, threshold):
        y, x = truth(frame).nonzero().T
        if not len(x):
            return [], 0.05
        best = (x.min().item(), y.min().item(), x.max().item() + 1, y.max().item() + 1)
        seen = [Detection((-3.0, 0.0, 99.0, 5.0), 0.3, "thing"), Detection(best, 0.8, phrases[0])]
        return [d for d in seen if d.score >= threshold], 0.8
