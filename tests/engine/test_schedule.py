import pytest
import torch

from weft.backbones.diffusers.parts import make_schedule
from weft.engine.schedule import Schedule
from weft.tests.numerics import assert_close
from weft.tests.tiny import SCHEDULER

TRAINED = ["epsilon", "v_prediction"]  # on a table of alphas
PREDICTIONS = [*TRAINED, "flow"]
ZERO_SNR = {
    "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "steps_offset": 0, "set_alpha_to_one": True,
    "prediction_type": "v_prediction",
}  # fmt: skip


def diffusers_scheduler(steps, **changes):
    """diffusers' own, with alphas in float64 so that both can be compared closely."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**{**SCHEDULER, **changes})
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    scheduler.set_timesteps(steps)
    return scheduler


def latents(n=2):
    return torch.randn(n, 3, 4, 2, 5, dtype=torch.float64)


@pytest.mark.parametrize("prediction", TRAINED)
@pytest.mark.parametrize("to_one", [False, True])
@pytest.mark.parametrize(
    ("spacing", "offset", "steps"),
    [("leading", 0, 1), ("leading", 0, 7), ("leading", 1, 30), ("leading", 1, 50), ("leading", 1, 500)]
    + [("trailing", 0, 1), ("trailing", 0, 20), ("trailing", 0, 50), ("trailing", 0, 1000)],
)
def test_a_step_is_that_of_diffusers(spacing, offset, steps, to_one, prediction):
    config = {"timestep_spacing": spacing, "steps_offset": offset, "set_alpha_to_one": to_one}
    config["prediction_type"] = prediction
    scheduler, schedule = diffusers_scheduler(steps, **config), make_schedule({**SCHEDULER, **config}, steps)
    assert schedule.steps == steps
    assert list(reversed(schedule.timesteps)) == scheduler.timesteps.tolist()
    for level in {steps, steps // 2 + 1, min(2, steps), 1}:
        z, output = latents()
        want = scheduler.step(output, int(schedule.label(level)), z, eta=0.0)
        assert_close(schedule.step(z, output, level, level - 1), want.prev_sample)
        clean, eps = schedule.split(z, output, level)
        assert_close(clean, want.pred_original_sample)
        assert_close(schedule.signal[level] * clean + schedule.noise[level] * eps, z)


@pytest.mark.parametrize(("spacing", "steps", "off"), [("trailing", 30, 1), ("trailing", 7, 1), ("linspace", 50, 1)])
def test_levels_are_consecutive_timesteps_where_diffusers_rounds(spacing, steps, off):
    schedule = make_schedule({**SCHEDULER, "timestep_spacing": spacing}, steps)
    alpha_bar = diffusers_scheduler(steps).alphas_cumprod
    for level in range(1, steps + 1):
        assert schedule.signal[level] == pytest.approx(alpha_bar[int(schedule.label(level))].item() ** 0.5, rel=1e-12)
    stride = [b - a for a, b in zip(schedule.timesteps, schedule.timesteps[1:])]
    assert len(set(stride)) == 2
    assert all(abs(s - 1000 // steps) <= off for s in stride)


@pytest.mark.parametrize("steps", [61, 103, 499, 769])
def test_trailing_has_the_steps_it_was_asked_for(steps):
    """For these numbers diffusers appends a timestep -1."""
    schedule = make_schedule({**SCHEDULER, "timestep_spacing": "trailing", "set_alpha_to_one": True}, steps)
    assert schedule.steps == steps
    assert schedule.label(1) >= 0
    assert schedule.label(steps) == 999
    assert all(a > b for a, b in zip(schedule.signal, schedule.signal[1:]))


@pytest.mark.parametrize("to_one", [False, True])
def test_the_clean_level_is_what_the_config_says(to_one):
    schedule = make_schedule({**SCHEDULER, "set_alpha_to_one": to_one}, 10)
    assert schedule.signal[0] == (1 if to_one else pytest.approx((1 - 0.00085) ** 0.5))
    assert len(schedule.signal) == len(schedule.noise) == 11


@pytest.mark.parametrize("prediction", TRAINED)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_unstep_undoes_a_step_exactly(spacing, prediction):
    schedule = make_schedule({**SCHEDULER, "timestep_spacing": spacing, "prediction_type": prediction}, 12)
    for start in range(13):
        for end in range(13):
            z, output = latents()
            there = schedule.step(z, output, start, end)
            assert_close(schedule.unstep(there, output, start, end), z)


def test_v_is_finite_from_pure_noise_to_clean():
    schedule = make_schedule({**SCHEDULER, **ZERO_SNR}, 10)
    assert schedule.signal[0] == 1
    assert schedule.signal[-1] == 0
    z, v = latents()
    clean, eps = schedule.split(z, v, 10)
    assert torch.equal(clean, -v)
    assert torch.equal(eps, z)
    clean, eps = schedule.split(z, v, 0)
    assert torch.equal(clean, z)
    assert torch.equal(eps, v)
    for start, end in [(10, 9), (1, 0), (9, 10), (0, 1)]:
        there = schedule.step(z, v, start, end)
        assert there.isfinite().all()
        assert_close(schedule.unstep(there, v, start, end), z)


def test_v_knows_clean_and_noise_of_a_mixture():
    schedule = make_schedule({**SCHEDULER, "prediction_type": "v_prediction"}, 10)
    clean, eps = latents()
    for level in (1, 5, 10):
        s, n = schedule.signal[level], schedule.noise[level]
        got = schedule.split(s * clean + n * eps, s * eps - n * clean, level)
        assert_close(got[0], clean)
        assert_close(got[1], eps)


def test_a_step_that_forgets_the_latent_has_no_inverse():
    schedule = make_schedule({**SCHEDULER, **ZERO_SNR}, 1)
    with pytest.raises(ValueError, match="step from level 1 to 0 forgets the latent: invert with more steps"):
        schedule.unstep(*latents(), 1, 0)


def test_epsilon_cannot_start_from_pure_noise():
    with pytest.raises(ValueError, match=r"predicts epsilon cannot start from pure noise \(alpha-bar 0\): use v"):
        make_schedule({**SCHEDULER, **ZERO_SNR, "prediction_type": "epsilon"}, 10)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_too_few_and_too_many_steps_are_refused(steps):
    with pytest.raises(ValueError, match=f"want 1 to 1000 steps, .* got {steps}"):
        make_schedule(SCHEDULER, steps)


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_as_many_steps_as_the_model_was_trained_with(offset):
    """diffusers' offset would go over the last timestep."""
    schedule = make_schedule({**SCHEDULER, "steps_offset": offset}, 1000)
    assert schedule.timesteps == tuple(range(1000))


@pytest.mark.parametrize("steps", [600, 501, 999, 350])
def test_many_steps_reach_the_noise(steps):
    """A stride that is rounded down would end at half the noise."""
    schedule = make_schedule({**SCHEDULER, "timestep_spacing": "leading", "steps_offset": 0}, steps)
    assert schedule.steps == steps
    assert schedule.timesteps[-1] >= 1000 - 2 * 1000 / steps
    assert schedule.noise[-1] > 0.99


def test_what_is_wrong_with_a_thousand_steps_is_told_in_a_line():
    with pytest.raises(ValueError, match="1000 steps are more") as refused:
        Schedule((1.0,) * 1000, (1.0,) * 1001, (0.0,) * 1001, "v_prediction")
    assert len(str(refused.value)) < 250


def test_betas_that_only_ddpm_knows_are_those_of_ddpm():
    from diffusers import DDPMScheduler

    config = {**SCHEDULER, "beta_schedule": "sigmoid"}
    schedule = make_schedule(config, 50)
    want = DDPMScheduler.from_config(config).alphas_cumprod.double()[list(map(int, schedule.timesteps))].sqrt()
    assert schedule.signal[1:] == pytest.approx(want.tolist(), rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"beta_end": None}, "no noise levels can be made"),
        ({"beta_schedule": "nonsense"}, "no noise levels can be made of the scheduler of this model"),
        ({"beta_start": 0.5, "beta_end": "x"}, "no noise levels can be made"),
        ({"beta_start": -0.1, "beta_schedule": "linear"}, "no noise that grows"),
        ({"beta_start": 2.0, "beta_end": 3.0}, "no noise that grows|no noise levels"),
        ({"trained_betas": [0.1, 0.2]}, "no noise that grows over 1000 timesteps"),
        ({"num_train_timesteps": 10**12}, "want a number in 1"),
        ({"num_train_timesteps": "many"}, "states many training timesteps"),
    ],
)
def test_betas_that_are_none_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        make_schedule({**SCHEDULER, **changes}, 10)


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", None])
def test_schedulers_without_betas_are_not_taken_for_ddim(name):
    config = {"_class_name": name, "num_train_timesteps": 1000, "shift": 3.0, "prediction_type": "epsilon"}
    with pytest.raises(ValueError, match=f"the scheduler of this model .{name}. states no betas"):
        make_schedule(config, 10)


def test_repeated_timesteps_are_refused():
    with pytest.raises(ValueError, match="timestep 1 is followed by 1, and they must rise"):
        Schedule.from_alpha_bar([1, 1], [1, 0.9, 0.8], "epsilon")


def test_unknown_prediction_types_are_refused():
    with pytest.raises(
        ValueError, match=r"'sample' is not supported: want one of \['epsilon', 'v_prediction', 'flow'\]"
    ):
        make_schedule({**SCHEDULER, "prediction_type": "sample"}, 10)


@pytest.mark.parametrize(("timesteps", "alpha_bar"), [([], [1.0]), ([1, 2], [1, 0.5]), ([1], [1, 0.5, 0.4])])
def test_levels_and_timesteps_go_together(timesteps, alpha_bar):
    want = f"want S >= 1 timesteps and S . 1 levels, got {len(timesteps)}, {len(alpha_bar)}, {len(alpha_bar)}"
    with pytest.raises(ValueError, match=want):
        Schedule.from_alpha_bar(timesteps, alpha_bar, "v_prediction")


# ---- flow models, and flow coordinates for all -----------------------------------------------------------------------

SIGMAS = (0.0, 0.1, 0.25, 0.6, 0.875, 1.0)
ALL = {
    "epsilon": make_schedule(SCHEDULER, 5),
    "v": make_schedule({**SCHEDULER, "prediction_type": "v_prediction"}, 5),
    "v from pure noise": make_schedule({**SCHEDULER, **ZERO_SNR}, 5),
    "flow": Schedule.from_sigmas(SIGMAS),
}


@pytest.fixture(params=ALL.values(), ids=ALL)
def schedule(request):
    return request.param


def test_a_flow_models_levels_are_its_sigmas_and_so_is_what_it_is_told():
    schedule = ALL["flow"]
    assert (schedule.steps, schedule.prediction, schedule.noise) == (5, "flow", SIGMAS)
    assert schedule.signal == tuple(1 - s for s in SIGMAS)
    assert [schedule.label(level) for level in range(1, 6)] == list(SIGMAS[1:])
    assert [schedule.flow(level) for level in range(6)] == [(s, 1.0) for s in SIGMAS]


def test_a_step_of_a_flow_model_is_that_of_diffusers():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(6)
    schedule = Schedule.from_sigmas(scheduler.sigmas.flip(0).tolist())
    assert schedule.steps == 6
    z, output = (x.float() for x in latents())
    for level, t in zip(range(6, 0, -1), scheduler.timesteps):
        want = scheduler.step(output, t, z).prev_sample
        assert_close(schedule.step(z, output, level, level - 1), want)


def test_an_output_is_read_as_what_the_network_should_have_said(schedule):
    """`answer` is the true output for a known mixture; `split` finds both again, at any level."""
    clean, eps = latents()
    for level in range(1, 6):
        x = schedule.noised(clean, eps, level)
        assert_close(x, schedule.signal[level] * clean + schedule.noise[level] * eps)
        output = schedule.answer(clean, eps, level)
        want = {
            "epsilon": eps,
            "v_prediction": schedule.signal[level] * eps - schedule.noise[level] * clean,
            "flow": eps - clean,
        }[schedule.prediction]
        assert_close(output, want)
        got = schedule.split(x, output, level)
        assert_close(got[0], clean)
        assert_close(got[1], eps)
        assert_close(schedule.velocity(x, output, level), eps - clean)


def test_any_step_leads_along_what_was_read_and_back(schedule):
    clean, eps = latents()
    for start in range(1, 6):
        output = schedule.answer(clean, eps, start)
        for end in range(6):
            x = schedule.noised(clean, eps, start)
            there = schedule.step(x, output, start, end)
            assert_close(there, schedule.noised(clean, eps, end))
            if end or start < 5 or schedule.signal[5]:  # from pure noise a v model's one step forgets the latent
                assert_close(schedule.unstep(there, output, start, end), x)


def test_in_flow_coordinates_every_step_is_an_euler_step(schedule):
    """y = x / (signal + noise), s = noise / (signal + noise): y' = y + (s' - s) (eps - clean)."""
    x, output = latents()  # any, also what no clip and no noise would give
    for start in range(1, 6):
        s, size = schedule.flow(start)
        assert size == pytest.approx(schedule.signal[start] + schedule.noise[start], rel=1e-15)
        assert s == pytest.approx(schedule.noise[start] / size, rel=1e-15)
        u = schedule.velocity(x, output, start)
        for end in range(6):
            s_end, size_end = schedule.flow(end)
            want = size_end * (x / size + (s_end - s) * u)
            assert_close(schedule.step(x, output, start, end), want)


def test_a_thinned_schedule_is_every_so_many_levels_with_their_labels(schedule):
    got = schedule.thinned(1)
    assert (got.signal, got.noise) == (schedule.signal[::5], schedule.noise[::5])
    assert (got.timesteps, got.prediction) == (schedule.timesteps[-1:], schedule.prediction)
    assert schedule.thinned(5) == schedule
    longer = make_schedule(SCHEDULER, 12)
    for steps in (1, 2, 3, 4, 6):
        some = longer.thinned(steps)
        for level in range(1, steps + 1):
            assert some.label(level) == longer.label(level * 12 // steps)
    with pytest.raises(ValueError, match="5 steps cannot be thinned to 2: want a number that divides them"):
        schedule.thinned(2)


def test_a_flow_models_signal_and_noise_add_up():
    with pytest.raises(ValueError, match="a flow model's signal and noise add up to 1 at every level: these do not"):
        Schedule((1.0, 2.0), (1.0, 0.8, 0.6), (0.0, 0.6, 0.8), "flow")
    with pytest.raises(ValueError, match="must rise"):
        Schedule.from_sigmas([0.0, 0.5, 0.5, 1.0])
