"""Training with sharpness-aware methods, from the command line.

Three programs, each with `--help`:

* `python -m experiments.train` trains one network with one method;
* `python -m experiments.compare` trains methods and seeds side by side: one table, one picture; the
  eight of `make demo`, or with `--methods all` the whole family;
* `python -m experiments.tune` searches the methods' settings on a validation part of the training
  examples, and writes the defaults that the other two read.
"""
