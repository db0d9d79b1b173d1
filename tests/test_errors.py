"""Laws of what is said where something is wrong."""

import numpy as np
import pytest

from numpy_gpt2.errors import check_int


@pytest.mark.parametrize("value", [2, np.int8(2), np.uint64(5), np.array(3), 5])
def test_a_whole_number_within_its_limits_is_handed_back_as_an_int(value):
    assert check_int("n", value, 2, 5) == int(value)
    assert type(check_int("n", value, 2)) is int


@pytest.mark.parametrize("value", [1, 6, -1, 2.0, "3", None, np.float32(3), np.array([3]), 10**300])
def test_anything_else_is_refused_with_the_name_the_limits_and_what_was_seen(value):
    with pytest.raises(ValueError, match=r"^n must be a whole number from 2 to 5\. Got .{1,120}\.$"):
        check_int("n", value, 2, 5)


def test_without_an_upper_limit_only_the_lower_one_is_said():
    assert check_int("n", 10**300, 2) == 10**300
    with pytest.raises(ValueError, match=r"^n must be a whole number, 2 or more\. Got 1\.$"):
        check_int("n", 1, 2)
