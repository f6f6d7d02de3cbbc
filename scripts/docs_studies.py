"""Draws docs/images/studies.png: what each arm of the toy studies ends above its baseline, with 95 % intervals.

``python scripts/docs_studies.py`` reads the seeds' numbers in docs/assets/studies.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from s2l_ext.evaluation.seeds import Difference, paired

DOCS = Path(__file__).parents[1] / "docs"
PANELS = {
    "S2L-PO, minus GRPO": {
        "tier 2": ["s2l_po_tier2", "s2l_po_tier2_20_seeds"],
        "tier 0": ["s2l_po"],
        "tier 0, other explorers": ["s2l_po_explorers"],
        "all sizes pre-trained alike": ["s2l_po_natural_seeds_4_to_10"],
    },
    "EXPO, and all together": {
        "EXPO minus GRPO, four tiers": ["expo", "expo_seeds_11_to_20"],
        "other settings minus EXPO": ["expo_settings"],
        "other coefficients minus EXPO": ["expo_rho"],
        "together minus GRPO, same FLOPs": ["together", "together_5_seeds", "together_seeds_6_to_10"],
    },
    "G2RPO-A": {
        "minus GRPO, tier 3": ["g2rpo_a"],
        "other settings minus adaptive": ["g2rpo_a_length_share"],
        "order of four tiers, minus GRPO": ["g2rpo_a_order", "g2rpo_a_order_seeds_4_to_10"],
    },
    "Sparse-to-dense, minus GRPO of the student": {"tier 1": ["sparse_to_dense", "sparse_to_dense_seeds_4_to_10"]},
}
"""Panel -> group -> files whose seeds are pooled; of a seed that two files have, the later one counts."""
CLEAR, OPEN = "#3f6fb5", "#9a9a9a"


def differences(files: list[str]) -> dict[str, Difference]:
    """Of every arm but the baseline, over the seeds that both have."""
    baseline, by_arm = "", dict[str, dict[str, float]]()
    for name in files:
        content: dict[str, Any] = json.loads((DOCS / "assets" / "studies" / f"{name}.json").read_text())
        baseline = content["baseline"]
        for arm, found in content["arms"].items():
            by_arm.setdefault(arm, {}).update(found["by_seed"])
    base = by_arm.pop(baseline)
    shared = {arm: [seed for seed in own if seed in base] for arm, own in by_arm.items()}
    return {
        arm: paired([by_arm[arm][seed] for seed in seeds], [base[seed] for seed in seeds])
        for arm, seeds in shared.items()
    }


def draw_panel(ax: Any, title: str, groups: dict[str, list[str]]) -> None:
    """Arms from top to bottom; blue where the interval excludes 0."""
    place, labels = 0, []
    for group, files in groups.items():
        labels.append((place, group))
        for arm, found in differences(files).items():
            place += 1
            low, high = found.ci95
            color = CLEAR if found.clear else OPEN
            ax.plot([low, high], [place, place], color=color, linewidth=2)
            ax.plot(found.mean, place, "o", color=color, markersize=4)
            labels.append((place, f"{arm.replace('_', ' ')} ({found.seeds[0]})"))
        place += 1
    ax.set_yticks([at for at, _ in labels], [text for _, text in labels], fontsize=7)
    for tick in ax.get_yticklabels():
        tick.set_fontweight("bold" if tick.get_text() in groups else "normal")
    ax.set_ylim(place, -1)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.grid(axis="x", alpha=0.25)
    ax.tick_params(axis="x", labelsize=7)
    ax.set_title(title, fontsize=9)


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 8.5), height_ratios=[20, 18])
    for ax, (title, groups) in zip(axes.flat, PANELS.items(), strict=True):
        draw_panel(ax, title, groups)
    for ax in axes[1]:
        ax.set_xlabel("difference in held-out accuracy", fontsize=8)
    figure.tight_layout()
    figure.savefig(DOCS / "images" / "studies.png", dpi=100)


if __name__ == "__main__":
    main()
