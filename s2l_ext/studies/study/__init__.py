"""A claim as a file: arms, seeds, what is matched. Runs go on after a kill; one table has intervals over seeds."""
