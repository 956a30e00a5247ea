"""The cosine that a warm-up does not delay."""

import math

import pytest
import torch
from mmengine.optim import LinearLR
from mmengine.registry import PARAM_SCHEDULERS

from dat_pp import LateCosineAnnealingLR

LR, END, WARMUP = 2.0, 40, 10


def cosine(step: int, low: float) -> float:
    return low + (LR - low) * (1 + math.cos(math.pi * step / END)) / 2


def make_optimizer() -> torch.optim.Optimizer:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [dict(params=[parameters[0]]), dict(params=[parameters[1]], lr=LR / 10)]
    return torch.optim.SGD(groups, lr=LR)


def late_cosine(optimizer: torch.optim.Optimizer, **settings: float) -> LateCosineAnnealingLR:
    settings = dict(begin=WARMUP, end=END, by_epoch=False, **settings)
    return LateCosineAnnealingLR(optimizer, **settings)


def run(optimizer: torch.optim.Optimizer, schedulers: list, steps: int) -> list[tuple]:
    rates = []
    for _ in range(steps):
        rates.append(tuple(group['lr'] for group in optimizer.param_groups))
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return rates


@pytest.mark.parametrize(
    ('settings', 'lows'),
    [
        (dict(eta_min=0.05), (0.05, 0.05)),
        (dict(eta_min_ratio=0.01), (0.01 * LR, 0.001 * LR)),
    ],
)
def test_continues_from_its_point_of_the_curve(settings: dict, lows: tuple) -> None:
    optimizer = make_optimizer()
    warmup = LinearLR(optimizer, start_factor=0.001, end=WARMUP, by_epoch=False)
    rates = run(optimizer, [warmup, late_cosine(optimizer, **settings)], END)
    assert rates[0][0] == pytest.approx(0.001 * LR)
    for step in range(WARMUP, END):
        assert rates[step][0] == pytest.approx(cosine(step, lows[0]))
        scale = (LR / 10 - lows[1]) / (LR - lows[1])
        expected = lows[1] + (cosine(step, lows[1]) - lows[1]) * scale
        assert rates[step][1] == pytest.approx(expected)


def test_resumes_at_the_same_rate() -> None:
    optimizer = make_optimizer()
    schedule = late_cosine(optimizer, eta_min=0.0)
    rates = run(optimizer, [schedule], END - 1)

    half = END // 2
    first = make_optimizer()
    stopped = late_cosine(first, eta_min=0.0)
    run(first, [stopped], half)
    resumed = make_optimizer()
    continued = late_cosine(resumed, eta_min=0.0)
    resumed.load_state_dict(first.state_dict())
    continued.load_state_dict(stopped.state_dict())
    assert run(resumed, [continued], END - 1 - half) == rates[half:]


def test_is_found_by_name() -> None:
    settings = dict(type='LateCosineAnnealingLR', begin=1, end=3, eta_min=0.0, by_epoch=False)
    schedule = PARAM_SCHEDULERS.build(settings, default_args=dict(optimizer=make_optimizer()))
    assert isinstance(schedule, LateCosineAnnealingLR)
