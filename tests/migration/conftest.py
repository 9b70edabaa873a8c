"""The recorder needs PyTorch, the tests do not."""

collect_ignore = ["record.py"]
