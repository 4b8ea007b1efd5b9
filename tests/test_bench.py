"""What `make bench` says of ratios that moved."""

from measure import Row, moved

KEPT = {"a": 0.50, "b": 0.50, "c": 0.50, "d": 0.50, "gone": 1.0}


def test_a_slow_down_of_more_than_15_percent_is_named_and_less_is_not() -> None:
    found = [Row(name, ratio, "") for name, ratio in {"a": 0.57, "b": 0.58, "c": 0.43, "d": 0.42, "e": 0.9}.items()]
    assert moved(found, KEPT) == ["SLOWER: b: 0.50 -> 0.58 (+16%)", "faster: d: 0.50 -> 0.42 (-16%)", "new: e: 0.90"]
