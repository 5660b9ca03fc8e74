"""The choices that measures share, checked in one place."""

import numbers
from collections.abc import Sequence

ESTIMATORS = ("unbiased", "biased")
GRAMS = ("linear", "rbf")
BACKENDS = ("native", "triton", "torch")


def check_options(estimator: str, gram: str, bandwidth: float | None) -> None:
    check_choice("estimator", estimator, ESTIMATORS)
    check_choice("gram", gram, GRAMS)
    if bandwidth is not None and gram != "rbf":
        raise ValueError("`bandwidth` belongs to gram='rbf'")
    if bandwidth is not None:
        check_bandwidth(bandwidth)


def check_bandwidth(bandwidth: float) -> None:
    if not isinstance(bandwidth, numbers.Real) or not 0 < bandwidth < float("inf"):
        raise ValueError(f"`bandwidth` must be a positive number, but is {bandwidth!r}")


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in known:
        choices = ", ".join(repr(choice) for choice in known)
        raise ValueError(f"`{name}` must be one of {choices}, but is {value!r}")


def check_whole_number(name: str, value: int, least: int) -> None:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"`{name}` must be a whole number from {least} on, but is {value!r}")


def check_seconds(name: str, value: float) -> None:
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not value >= 0:
        raise ValueError(f"`{name}` must be a number of seconds from 0 on, but is {value!r}")


def check_share(name: str, value: float) -> None:
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be a number from 0 to 1, but is {value!r}")
