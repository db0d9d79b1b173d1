"""A walk through one forward pass, array by array: `python -m numpy_gpt2.step`."""
