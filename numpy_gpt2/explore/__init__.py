"""One forward pass as a page to look at: `python -m numpy_gpt2.explore`."""
