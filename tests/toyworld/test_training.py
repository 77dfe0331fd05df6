"""What all runs share, on models of a few numbers."""

import pytest
import torch

from weft.toyworld import training
from weft.toyworld.training import Recipe


class Stopped(Exception):
    pass


def test_resuming_restores_both_random_states(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 2)

    def run(label, stop=None):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
        drawn = []

        def loss(step, generator):
            if step == stop:
                raise Stopped
            drawn.append(torch.randn(8, 3, generator=generator))
            return {"loss": (model(drawn[-1]) - 1).square().mean()}

        training.train("line", [model], loss, Recipe(steps=6, peak_rate=0.1, warmup=1), tmp_path / label)
        assert not model.training
        return drawn, model

    drawn, model = run("unbroken")
    with pytest.raises(Stopped):
        run("stopped", stop=5)
    resumed_drawn, resumed = run("stopped")
    assert torch.equal(torch.stack(drawn[4:]), torch.stack(resumed_drawn))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))


def test_a_finished_run_is_not_trained_again(tmp_path):
    layer = torch.nn.Linear(3, 1)
    recipe, steps = Recipe(steps=3, peak_rate=1e-3, warmup=1), []

    def loss(step, generator):
        steps.append(step)
        return {"loss": (layer(torch.randn(8, 3, generator=generator)) - 1).square().mean()}

    training.train("line", [layer], loss, recipe, tmp_path)
    weights = layer.weight.clone()
    torch.nn.init.zeros_(layer.weight)
    training.train("line", [layer], loss, recipe, tmp_path)
    assert steps == [0, 1, 2]
    assert torch.equal(layer.weight, weights)
    assert (tmp_path / "line.log").read_text().count("step 3 ") == 1


def test_training_finds_the_minimum(tmp_path):
    torch.manual_seed(0)
    layer, truth = torch.nn.Linear(3, 1), torch.tensor([[1.0, -2.0, 0.5]])

    def loss(step, generator):
        x = torch.randn(16, 3, generator=generator)
        return {"loss": (layer(x) - x @ truth.T).square().mean()}

    training.train("line", [layer], loss, Recipe(steps=300, peak_rate=0.1, warmup=10, ema=0.9), tmp_path)
    torch.testing.assert_close(layer.weight.detach(), truth, atol=0.02, rtol=0)


def test_the_rate_warms_up_and_ends_at_the_floor():
    recipe = Recipe(steps=100, peak_rate=2.0, warmup=10, floor=0.1)
    rates = [recipe.rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.2, rel=0.01)
    assert max(rates) == rates[9]
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[100] == pytest.approx(0.2)


def test_noise_follows_the_scheduler_and_v_gives_both_back():
    from diffusers import DDIMScheduler

    alpha_bar = training.alpha_bars()
    torch.testing.assert_close(alpha_bar, DDIMScheduler(**training.SCHEDULER).alphas_cumprod, atol=1e-6, rtol=1e-4)
    clean, noise, t = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0, 500, 999])
    noised, v = training.add_noise(clean, t, noise, alpha_bar)
    a = alpha_bar[t].view(3, 1, 1, 1)
    torch.testing.assert_close(a.sqrt() * noised - (1 - a).sqrt() * v, clean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close((1 - a).sqrt() * noised + a.sqrt() * v, noise, atol=1e-5, rtol=1e-4)


def test_timesteps_come_one_from_each_part_of_the_range():
    t = training.stratified_timesteps(20, torch.Generator().manual_seed(0))
    assert sorted((t // 50).tolist()) == list(range(20))
    assert t.tolist() != sorted(t.tolist())
