"""GRPO and the four methods in one process of plain PyTorch, for studies with many seeds."""
