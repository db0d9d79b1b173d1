"""Settings of all tests."""

from hypothesis import HealthCheck, settings

# Examples are the same in every run, so that a pass here is a pass everywhere; nothing is timed, for machines differ.
# To look further: pytest --hypothesis-profile explore
settings.register_profile("numpy_gpt2", deadline=None, max_examples=25, derandomize=True,
                          suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("numpy_gpt2")
