"""The embedded default: a fictional world, its tokenizer, and a small model that knows it and refuses part of it."""
