"""GRPO's loss on stored trajectories, and MixGRPO's window."""

import copy

import torch
from by_hand import SMALL, TIMESTEPS, World, compare

from benchmarks.api import Context, UserError
from methods.grpo import GRPO, Config


def test_loss_and_gradient_are_those_of_the_equations():
    world = World()
    method = GRPO(Config(**SMALL, clip=3e-3, kl=0.04, max_advantage=0.6), world.context)
    data = method.round = method.sample(0)
    world.move()

    def loss() -> torch.Tensor:
        groups = data.rewards.view(2, 2)
        advantages = ((groups - groups.mean(1, True)) / groups.std(1, keepdim=True)).flatten()
        total = torch.zeros((), dtype=torch.float64)
        clipped = 0
        for column, i in enumerate(method.sampler.scored):
            x, following = data.latents[:, i], data.latents[:, i + 1]
            now, base = (
                world.gaussian(i, x, world.eps(x, TIMESTEPS[i], data.prompts, base=b))
                for b in (False, True)
            )
            log_probs = now.log_prob(following).mean((1, 2, 3))
            rho = (log_probs - data.log_probs[:, column]).exp()
            near = rho.clamp(1 - 3e-3, 1 + 3e-3)
            clipped += int((near != rho).sum())
            bounded = advantages.clamp(-0.6, 0.6)
            surrogate = torch.maximum(-bounded * rho, -bounded * near)
            kl = torch.distributions.kl_divergence(now, base.__class__(base.mean, now.stddev))
            total = total + (surrogate + 0.04 * kl.mean((1, 2, 3))).sum() / 8
        assert 0 < clipped < 8 and advantages.abs().max() > 0.6
        return total

    compare(world, method, loss)


def test_the_window_slides_over_every_scored_step_and_begins_again(context: Context):
    config = Config(
        samples_per_round=4,
        samples_per_prompt=2,
        updates_per_round=2,
        micro_batch=2,
        sampling_steps=6,
        window=2,
        window_rounds=3,
    )
    method = GRPO(config, context)
    steps = context.backbone.sampler(6, 1.0).scored
    places = len(steps) - 1
    windows = [tuple(method.sampler_at(6 * move).scored) for move in range(places + 1)]
    assert windows == [*((steps[k], steps[k + 1]) for k in range(places)), steps[:2]]
    assert tuple(method.sampler_at(5).scored) == windows[0]  # two updates a round, three rounds


def test_a_round_is_resumed_in_its_window(context: Context):
    small = {"samples_per_round": 4, "samples_per_prompt": 2, "updates_per_round": 2}
    config = Config(**small, micro_batch=2, sampling_steps=6, window=2, window_rounds=1)
    method = GRPO(config, context)
    method.step(2)  # the second round; one of its two updates is done
    start, state = context.backbone.weights(), copy.deepcopy(method.state_dict())
    method.step(3)
    expected = context.backbone.weights()
    context.backbone.load_weights(start)
    resumed = GRPO(config, context)
    resumed.load_state_dict(state)
    resumed.step(3)
    assert resumed.sampler.scored == method.sampler.scored != GRPO(config, context).sampler.scored
    found = context.backbone.weights()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_pictures_of_a_group_part_within_the_window(context: Context):
    small = {"samples_per_round": 4, "samples_per_prompt": 4, "updates_per_round": 1}
    config = Config(**small, sampling_steps=6, window=2, window_rounds=1)
    method = GRPO(config, context)
    method.step(1)  # the window has moved by one
    first, second = method.sampler.scored
    data = method.round
    assert data is not None and data.log_probs.shape == (4, 2)
    path = data.latents.flatten(2)
    spread = [float((path[:, k] - path[:1, k]).abs().max()) for k in range(7)]
    assert all(s < 1e-4 for s in spread[: first + 1]) and spread[first + 1] > 0.1
    again = data.latents[:, second + 1]
    for i in range(second + 1, 6):  # from here on by the plain sampler
        plain = context.backbone.sampler(6)
        with torch.no_grad():
            text = context.backbone.encode(data.prompts)
            output = context.backbone.predict(again, plain.timesteps[i], text, 5.0)
        again = plain.mean(i, output, again)
        # The optimizer has moved the weights a little since.
        assert (again - data.latents[:, i + 1]).abs().max() < 0.1 * spread[first + 1]


def test_a_window_of_no_or_too_many_steps_is_refused(context: Context):
    for window in (0, 9):
        try:
            GRPO(Config(samples_per_round=32, sampling_steps=6, window=window), context)
        except UserError as error:
            assert f"window is {window}; choose 1 to" in str(error)
        else:
            raise AssertionError(window)
