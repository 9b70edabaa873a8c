"""Training with sharpness-aware methods, from the command line.

Five programs, each with `--help`:

* `python -m experiments.train` trains one network with one method;
* `python -m experiments.compare` trains methods and seeds side by side: one table, one picture; the
  eight of `make demo`, or with `--methods all` the whole family;
* `python -m experiments.grid --vary method=sgd,sam rho=0.05,0.1 seed=0,1,2` trains every combination of any
  settings' values, in one process or several, on one machine or more;
* `python -m experiments.summarize runs/grid` sums up finished runs, seeds together: 95 % intervals, the
  share of SAM's gain that a method keeps, accuracy against time and against gradients;
* `python -m experiments.tune` searches the methods' settings on a validation part of the training
  examples, and writes the defaults that the others read.
"""
