"""Studies that answer one question of a paper and are no part of training."""
