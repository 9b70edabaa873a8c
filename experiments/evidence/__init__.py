"""How much of SAM's gain does a method keep, at what cost? Tasks, candidates, and the protocol.

`python -m experiments.evidence mnist1d` tunes, tests and times every candidate on a task. It appends to
`experiments/results/mnist1d.jsonl` as it goes, and goes on from there when it is called again.
`python -m experiments.evidence.tables` makes the tables and the picture of docs/results.md from these files.
"""
