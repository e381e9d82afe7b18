"""What the bench computes from what it measured."""

import pytest

from bench.figures import Figures, above, figures, least, least_ratio, medians, percentile, ratio


def of_cpu(*cpu_us: float) -> list[Figures]:
    """Return rounds that differ in the CPU time only."""
    return [Figures(cpu_us=one, per_second=1.0, p50_ms=1.0, p99_ms=1.0) for one in cpu_us]


@pytest.mark.parametrize(("percent", "value"), [(50, 50), (99, 99), (99.5, 100), (100, 100), (0, 1)])
def test_a_percentile_is_a_value_that_was_measured(percent: float, value: int) -> None:
    """The least value that at least so many do not exceed, whatever their order."""
    assert percentile(range(100, 0, -1), percent) == value


def test_a_percentile_of_one_value_is_that_value() -> None:
    """However few answers there were, both percentiles are among them."""
    assert percentile([7], 1) == percentile([7], 99) == 7


def test_there_is_no_percentile_of_nothing() -> None:
    """A run without answers is a failure, not a latency of 0."""
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_cpu_and_rate_are_per_check_latency_is_per_call() -> None:
    """2 calls of 256 checks in 0.5 s, with 5.12 ms of CPU."""
    result = figures(checks=512, seconds=0.5, cpu_seconds=0.00512, latencies_us=[1_000, 3_000])
    assert result.cpu_us == pytest.approx(10)
    assert result.per_second == 1_024
    assert (result.p50_ms, result.p99_ms) == (1.0, 3.0)


def test_medians_are_taken_figure_by_figure() -> None:
    """One disturbed round moves nothing."""
    rounds = [Figures(10, 900, 1, 2), Figures(11, 100, 9, 99), Figures(12, 1_000, 2, 3)]
    assert medians(rounds) == Figures(11, 900, 2, 3)


def test_differences_and_ratios_are_of_rounds_not_of_medians() -> None:
    """A machine that gets slower from round to round changes neither."""
    floor, check = of_cpu(100, 200, 400), of_cpu(130, 260, 520)
    assert ratio(check, floor) == pytest.approx(1.3)
    assert above(of_cpu(140, 240, 440), floor) == 40


def test_rounds_are_compared_in_pairs() -> None:
    """A missing round is an error, not a comparison of other rounds."""
    with pytest.raises(ValueError, match="argument"):
        ratio(of_cpu(1, 2), of_cpu(1))


def test_the_best_round_has_the_least_cost_and_the_most_checks() -> None:
    """Of several rounds the one that others disturbed least tells: least CPU and latency, most checks."""
    rounds = [Figures(3.0, 10.0, 5.0, 9.0), Figures(2.0, 30.0, 6.0, 8.0)]
    assert least(rounds) == Figures(2.0, 30.0, 5.0, 8.0)


def test_the_ratio_of_the_best_rounds_is_not_of_one_round() -> None:
    """Each side has its own best round: 4 to 2, though in every round it was more."""
    assert least_ratio(of_cpu(6.0, 4.0, 9.0), of_cpu(2.0, 3.0, 4.0)) == 2.0
