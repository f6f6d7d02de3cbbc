"""A claim as a file: arms, seeds, what is matched. Runs continue after a kill; one table has intervals over seeds."""
