import pytest

from pl_compile.config.train import ScheduleConfig
from pl_compile.errors import ConfigError
from pl_compile.training.schedule import CosineSchedule, schedule_from_config


def exactly(value: float) -> object:
    return pytest.approx(value, rel=1e-12, abs=1e-22)


# The formulas, and these numbers, are those of NeMo's CosineAnnealing.


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 1e-4 / 51), (49, 1e-4 * 50 / 51), (50, 1e-4), (525, 5e-5), (1000, 0.0), (1001, 0.0)],
)
def test_without_a_tail_the_cosine_ends_with_the_run(step: int, rate: float) -> None:
    schedule = CosineSchedule(
        lr=1e-4, min_lr=0.0, warmup_steps=50, constant_steps=0, max_steps=1000
    )

    assert schedule.rate(step) == exactly(rate)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.0), (25, 5e-5), (50, 1e-4), (475, 5.5e-5), (900, 1e-5), (950, 1e-5), (1001, 1e-5)],
)
def test_with_a_tail_the_rate_stays_at_its_lowest(step: int, rate: float) -> None:
    schedule = CosineSchedule(
        lr=1e-4, min_lr=1e-5, warmup_steps=50, constant_steps=100, max_steps=1000
    )

    assert schedule.rate(step) == exactly(rate)


def test_without_a_tail_the_lowest_rate_comes_after_the_last_step() -> None:
    schedule = CosineSchedule(lr=1.0, min_lr=0.25, warmup_steps=0, constant_steps=0, max_steps=10)

    assert [schedule.rate(step) for step in (0, 5, 10, 11)] == [
        exactly(rate) for rate in (1.0, 0.625, 0.25, 0.25)
    ]


def test_a_run_that_is_all_warm_up_ends_at_the_highest_rate() -> None:
    schedule = CosineSchedule(lr=1.0, min_lr=0.0, warmup_steps=4, constant_steps=0, max_steps=4)

    rates = [schedule.rate(step) for step in range(6)]

    assert rates == [exactly(rate) for rate in (0.2, 0.4, 0.6, 0.8, 1.0, 0.0)]


def test_a_warm_up_and_a_tail_without_a_cosine_between_them_meet() -> None:
    schedule = CosineSchedule(lr=1.0, min_lr=0.5, warmup_steps=2, constant_steps=2, max_steps=4)

    rates = [schedule.rate(step) for step in range(5)]

    assert rates == [exactly(rate) for rate in (0.0, 0.5, 1.0, 0.5, 0.5)]


def test_a_constant_rate_is_one_whose_lowest_is_its_highest() -> None:
    schedule = CosineSchedule(lr=0.5, min_lr=0.5, warmup_steps=0, constant_steps=0, max_steps=7)

    assert {schedule.rate(step) for step in range(9)} == {0.5}


# From a config


def test_warm_up_may_be_a_share_of_the_run() -> None:
    by_ratio = schedule_from_config(ScheduleConfig(warmup_ratio=0.05), 1e-3, 200)
    by_default = schedule_from_config(ScheduleConfig(), 1e-3, 200)

    assert by_ratio == by_default == CosineSchedule(1e-3, 0.0, 10, 0, 200)


def test_steps_of_warm_up_go_before_a_share() -> None:
    config = ScheduleConfig(warmup_steps=0, warmup_ratio=0.5, min_lr=1e-5, constant_steps=3)

    assert schedule_from_config(config, 1e-3, 20) == CosineSchedule(1e-3, 1e-5, 0, 3, 20)


def test_a_tail_may_be_a_share_of_the_run() -> None:
    config = ScheduleConfig(warmup_steps=0, min_lr=1e-5, constant_ratio=0.1)

    assert schedule_from_config(config, 1e-4, 1000) == CosineSchedule(1e-4, 1e-5, 0, 100, 1000)
    assert schedule_from_config(ScheduleConfig(), 1e-4, 1000).constant_steps == 0


def test_steps_of_a_tail_go_before_a_share() -> None:
    none = ScheduleConfig(warmup_steps=50, constant_steps=0, constant_ratio=0.5)
    some = ScheduleConfig(warmup_steps=50, constant_steps=7, constant_ratio=0.5)

    assert schedule_from_config(none, 1e-4, 1000) == CosineSchedule(1e-4, 0.0, 50, 0, 1000)
    assert schedule_from_config(some, 1e-4, 1000) == CosineSchedule(1e-4, 0.0, 50, 7, 1000)


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.0), (25, 5e-5), (50, 1e-4), (475, 5.5e-5), (900, 1e-5), (999, 1e-5)]
)
def test_a_share_gives_the_rates_of_as_many_steps(step: int, rate: float) -> None:
    config = ScheduleConfig(warmup_ratio=0.05, min_lr=1e-5, constant_ratio=0.1)

    assert schedule_from_config(config, 1e-4, 1000).rate(step) == exactly(rate)


# Refusals


def test_shares_that_are_more_than_the_run_are_refused_in_steps() -> None:
    with pytest.raises(ConfigError) as error:
        schedule_from_config(ScheduleConfig(warmup_ratio=0.6, constant_ratio=0.5), 0.25, 10)

    assert str(error.value) == (
        "checking 'optim.sched': 6 warm-up and 5 constant steps; "
        "expected together at most the run's 10 steps."
    )


def test_a_lowest_rate_above_the_highest_is_refused_with_both() -> None:
    with pytest.raises(ConfigError) as error:
        schedule_from_config(ScheduleConfig(min_lr=0.5), 0.25, 100)

    assert str(error.value) == "checking 'optim.sched': min_lr 0.5; expected at most lr 0.25."


def test_phases_longer_than_the_run_are_refused_with_all_three_numbers() -> None:
    with pytest.raises(ConfigError) as error:
        schedule_from_config(ScheduleConfig(warmup_steps=7, constant_steps=5), 0.25, 11)

    assert str(error.value) == (
        "checking 'optim.sched': 7 warm-up and 5 constant steps; "
        "expected together at most the run's 11 steps."
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("warmup_steps", -5),
        ("constant_steps", -5),
        ("warmup_ratio", -0.5),
        ("constant_ratio", -0.5),
        ("constant_ratio", 1.5),
        ("min_lr", -1e-5),
    ],
)
def test_a_number_that_no_schedule_could_honour_is_refused_by_name(key: str, value: float) -> None:
    with pytest.raises(ConfigError) as error:
        schedule_from_config(ScheduleConfig(**{key: value}), 0.25, 11)  # type: ignore[arg-type]

    assert f"{key} {value}" in str(error.value)
