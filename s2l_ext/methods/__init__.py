"""What this project is for: one folder for each block of ``s2l:``.

| folder | paper | the one change versus GRPO |
|---|---|---|
| ``explorer`` | S2L-PO, arXiv 2605.30789 | a frozen smaller model samples part of every group |
| ``guidance`` | G2RPO-A, arXiv 2508.13023 | part of every group continues a reasoning trace |
| ``curriculum`` | EXPO, arXiv 2605.09923 | prompts are drawn by their pass rate |
| ``kl`` | EXPO, arXiv 2605.09923 | the KL coefficient follows the batch's accuracy |
| ``distill`` | sparse-to-dense, arXiv 2605.12483 | a divergence to a teacher is the loss |

``base.py`` is their interface, ``registry.py`` lists them in the order of their hooks.
"""
