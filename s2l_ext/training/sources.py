"""Who sampled a row. Every row of a batch has exactly one source."""

LEARNER = "learner"
EXPLORER = "explorer"
SOURCES = (LEARNER, EXPLORER)
