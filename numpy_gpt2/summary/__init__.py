"""Counts, costs and weight statistics of a GPT-2: `python -m numpy_gpt2.summary`."""
