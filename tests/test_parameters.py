"""Parameters are gathered in buckets: whole, in order, and never more at once than was said."""

from __future__ import annotations

import pytest

from dapo_openrlhf.backend.parameters import buckets


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ([], 10, []),
        ([4, 4, 4], 8, [(0, 2), (2, 3)]),
        ([4, 4, 4], 12, [(0, 3)]),
        ([20, 1, 1], 10, [(0, 1), (1, 3)]),  # one too large goes alone
        ([1, 20, 1], 10, [(0, 1), (1, 2), (2, 3)]),
        ([10], 10, [(0, 1)]),
    ],
)
def test_buckets_hold_at_most_the_limit(sizes: list[int], limit: int, expected: list[tuple[int, int]]) -> None:
    assert list(buckets(sizes, limit)) == expected


def test_buckets_do_not_grow_with_the_number_of_parameters() -> None:
    few, many = [1000] * 10, [1] * 10_000
    assert len(list(buckets(few, 5000))) == len(list(buckets(many, 5000))) == 2
