"""What methods are made of: a file for each of the questions that a step answers, and the bases."""
