"""How a step runs: what a user gives, what is differentiated and counted, how pieces come together."""
