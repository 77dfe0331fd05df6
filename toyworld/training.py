"""What every training run shares: noise levels, weight averaging, learning rate, checkpoints, a log.

Runs are counted in steps, never in seconds, so a seed gives the same run on the same machine. A run that is stopped
goes on from its last checkpoint with the random state it had.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

# Stable Diffusion's schedule. The networks predict v (Salimans & Ho 2022): finite at every noise level.
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
    "timestep_spacing": "leading",
}
CHECKPOINT_EVERY = 200
TIMED_AT, SLACK = 150, 0.92  # a run with a deadline counts its steps at this step, for this share of the time left
LOG_EVERY = 50


def alpha_bars() -> Tensor:
    """[1000] cumulative signal power of the training schedule."""
    betas = torch.linspace(SCHEDULER["beta_start"] ** 0.5, SCHEDULER["beta_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


def stratified_timesteps(n: int, generator: torch.Generator) -> Tensor:
    """[n] timesteps, one from each n-th of the range in random order: a calmer loss than independent draws."""
    t = (torch.arange(n) + torch.rand(n, generator=generator)) / n * 1000
    return t.long().clamp(0, 999)[torch.randperm(n, generator=generator)]


def add_noise(clean: Tensor, t: Tensor, noise: Tensor, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    """(noised, v target) for timesteps t [n]."""
    a = alpha_bar[t].view(-1, *[1] * (clean.ndim - 1))
    return a.sqrt() * clean + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * clean


@dataclass(frozen=True)
class Recipe:
    """The numbers of one run."""

    steps: int
    peak_rate: float
    weight_decay: float = 1e-3
    warmup: int = 100
    floor: float = 0.02  # final learning rate as a share of the peak
    ema: float = 0.998  # decay of the weight average; 0 keeps the last weights
    seed: int = 0
    device: str = field(default="cpu", repr=False)  # where it runs; most runs draw what is random on the CPU anyway
    deadline: float = field(default=math.inf, repr=False)  # on `time.monotonic`; see `in_time`

    def rate(self, step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * min(1, step / self.steps)))
        return self.peak_rate * min(1, (step + 1) / self.warmup) * (self.floor + (1 - self.floor) * cosine)

    def in_time(self, step: int, seconds: float) -> Recipe:
        """The recipe with as many steps as there is time for until its deadline, as `step` of them took `seconds`."""
        if math.isinf(self.deadline):
            return self
        left = SLACK * (self.deadline - time.monotonic())
        return replace(self, steps=step + max(1, int(left * step / seconds)))


def noise_source(recipe: Recipe, step: int) -> torch.Generator:
    """A generator on the recipe's device, the same for a step whether or not the run was stopped before it.

    For runs whose noise would take longer to draw on the CPU than a step takes on the device.
    """
    return torch.Generator(recipe.device).manual_seed(recipe.seed * 1_000_000 + step)


def mixed(device: str):
    """bfloat16 where the arithmetic allows it, on a GPU; float32 elsewhere."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=torch.device(device).type == "cuda")


class Average:
    """Exponential moving average of parameters, with a ramp so that early steps do not weigh."""

    def __init__(self, parameters: list[nn.Parameter], decay: float):
        self.parameters, self.decay, self.count = parameters, decay, 0
        self.shadow = [p.detach().clone() for p in parameters]

    def update(self) -> None:
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def write_back(self) -> None:
        for p, s in zip(self.parameters, self.shadow):
            p.copy_(s)


Loss = Callable[[int, torch.Generator], dict[str, Tensor]]


def train(name: str, modules: Iterable[nn.Module], loss: Loss, recipe: Recipe, folder: Path) -> None:
    """Minimises `loss(step, generator)["loss"]` over the modules' parameters, in place; ends with the averaged weights.

    Args:
        modules: they are moved to the recipe's device, and back to the CPU at the end.
        loss: returns the value to minimise under "loss"; its other entries are logged with it, as running means.
        folder: holds `<name>.pt`, from which a stopped run goes on, and `<name>.log`.

    Raises:
        ValueError: the checkpoint in `folder` belongs to another recipe.
    """
    modules = [module.to(recipe.device) for module in modules]
    parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1, betas=(0.9, 0.99), weight_decay=recipe.weight_decay, foreach=True)
    average = Average(parameters, recipe.ema)
    generator = torch.Generator().manual_seed(recipe.seed)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log = folder / f"{name}.pt", folder / f"{name}.log"
    first, seconds = 0, 0.0
    if checkpoint.exists():
        first, seconds = _restore(checkpoint, recipe, modules, optimizer, average, generator)
    else:
        log.write_text(f"# {name}: {recipe}, {sum(p.numel() for p in parameters) / 1e6:.2f} M parameters\n")
    for module in modules:
        module.train()
    started, means = time.monotonic() - seconds, {}
    step = first - 1
    while (step := step + 1) < recipe.steps:
        if step == TIMED_AT:
            recipe = recipe.in_time(step, time.monotonic() - started)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        values = loss(step, generator)
        optimizer.zero_grad()
        values["loss"].backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update()
        for key, value in values.items():  # they stay on the device: to read one is to wait for it
            value = value.detach().double()
            means[key] = value if key not in means else 0.98 * means[key] + 0.02 * value
        seconds = time.monotonic() - started
        if (step + 1) % LOG_EVERY == 0 or step + 1 == recipe.steps:
            line = " ".join([f"step {step + 1} {seconds:.0f}s"] + [f"{k} {v.item():.5f}" for k, v in means.items()])
            with log.open("a") as stream:
                stream.write(line + "\n")
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == recipe.steps:
            _save(checkpoint, recipe, step + 1, seconds, modules, optimizer, average, generator)
    if recipe.ema:
        average.write_back()
    for module in modules:
        module.eval().cpu()


def _save(path, recipe, step, seconds, modules, optimizer, average, generator) -> None:
    state = {
        "recipe": str(recipe),
        "step": step,
        "seconds": seconds,
        "modules": [m.state_dict() for m in modules],
        "optimizer": optimizer.state_dict(),
        "average": average.shadow,
        "count": average.count,
        "generator": generator.get_state(),
        "global": torch.get_rng_state(),
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)  # a run that is killed while saving keeps its previous checkpoint


def _restore(path, recipe, modules, optimizer, average, generator) -> tuple[int, float]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["recipe"] != str(recipe):
        raise ValueError(f"{path} was made by {state['recipe']}, not by {recipe}: delete it to start anew")
    for module, weights in zip(modules, state["modules"]):
        module.load_state_dict(weights)
    optimizer.load_state_dict(state["optimizer"])
    average.shadow, average.count = [s.to(recipe.device) for s in state["average"]], state["count"]
    generator.set_state(state["generator"])
    torch.set_rng_state(state["global"])
    return state["step"], state["seconds"]
