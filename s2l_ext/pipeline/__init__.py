"""Stages that hand a model on, as one resumable command. Launches processes; imports neither verl nor ray nor torch."""
