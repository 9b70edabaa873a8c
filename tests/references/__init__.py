"""Literal NumPy float64 references: slow loops that share nothing with the package under test.

Every method is one function that runs a whole training trajectory, written as its paper's pseudo
code, and returns a record: a dict from a quantity's name to its list of values, one per step.
Everything random is fed in, so that a trajectory can be compared step by step.
"""
