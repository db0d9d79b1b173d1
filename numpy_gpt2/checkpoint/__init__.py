"""From a name to a model and its tokenizer, and back to files: loading.py is where to begin."""
