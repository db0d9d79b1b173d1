"""One forward pass as an HTML page: `python -m numpy_gpt2.explore`."""
