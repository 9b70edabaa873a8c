"""What a training step costs: FLOPs, memory, compile time and time, relative to plain SGD."""
