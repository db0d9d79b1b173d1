"""Settings of all tests."""

import signal
import sys

import pytest
from hypothesis import HealthCheck, Phase, settings

# Examples are the same in every run, so that a pass here is a pass everywhere; nothing is timed, for machines differ.
# To look further: pytest --hypothesis-profile explore
settings.register_profile("numpy_gpt2", deadline=None, max_examples=25, derandomize=True,
                          suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
# For scripts/verify/mutation.sh, which runs the tests thousands of times and asks only whether one fails.
settings.register_profile("mutation", deadline=None, max_examples=10, derandomize=True,
                          phases=[Phase.explicit, Phase.generate], suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("numpy_gpt2")

# Where a shell has started the tests in the background, they ignore Ctrl-C, and the commands that they run would too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def same_trace_function():
    """A test that debugs ends with pdb's trace function, or none; coverage must go on watching the tests after it."""
    before = sys.gettrace()
    yield
    if sys.gettrace() is not before:
        sys.settrace(before)
