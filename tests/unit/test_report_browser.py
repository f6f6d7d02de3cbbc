"""The pages in a real browser: they load nothing, log nothing, fit the screen and show every line's colour."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from s2l_ext import cli

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on the PATH"),
]
NOTHING = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
PROBE = """<script>addEventListener('load', () => {
  const found = {width: innerWidth, page: document.documentElement.scrollWidth, cut: [], sections: []};
  for (const svg of document.querySelectorAll('figure > svg')) {
    const frame = svg.getBoundingClientRect();
    for (const text of svg.querySelectorAll('text')) {
      const box = text.getBoundingClientRect();
      if (box.left < frame.left - 1 || box.right > frame.right + 1) found.cut.push(text.textContent);
    }
  }
  for (const section of document.querySelectorAll('section'))
    found.sections.push([section.id, section.getBoundingClientRect().height]);
  found.loaded = performance.getEntriesByType('resource').map(entry => entry.name);
  const said = document.createElement('pre');
  said.id = 'probe';
  said.textContent = JSON.stringify(found);
  document.body.append(said);
})</script>"""
BINS = 20


def chromium(page: Path, profile: Path, *options: str) -> subprocess.CompletedProcess:
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=2000", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


def console(done: subprocess.CompletedProcess) -> list[str]:
    return [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def probed(page: Path, profile: Path, width: int) -> dict:
    """Layout as the browser has it; any request, script or style from elsewhere would be a line on the console."""
    text = page.read_text()
    policy = f'<meta http-equiv="Content-Security-Policy" content="{NOTHING}">'
    copy = page.with_name("probed.html")
    copy.write_text(text.replace("<head>", f"<head>{policy}").replace("</body>", f"{PROBE}</body>"))
    done = chromium(copy, profile, f"--window-size={width},900", "--dump-dom")
    assert console(done) == []
    return json.loads(html.unescape(re.search(r"<pre id=\"probe\">(.*?)</pre>", done.stdout)[1]))


def write_run(folder: Path, lift: float) -> Path:
    """Twelve steps of everything: an explorer, guidance, a KL controller, a curriculum, dumps, configuration, plan."""
    for name in ("validation", "rollouts"):
        (folder / name).mkdir(parents=True)
    lines, draws = [], []
    for step in range(13):
        if step % 4 == 0:
            right = int(20 + (lift + 1.5) * step)
            rows = [
                {"input": f"user\nproblem {i}", "output": f"answer {i}", "acc": float(i < right)} for i in range(64)
            ]
            write_lines(folder / "validation" / f"{step}.jsonl", rows)
            lines.append({"step": step, "data": {"val-core/a_long_name_of_a_set/acc/mean@1": right / 64}})
        if step:
            lines.append({"step": step, "data": step_metrics(step, lift)})
            draws.append(draw(step))
            rows = [rollout(step, session) for session in range(4)]
            write_lines(folder / "rollouts" / f"{step}.jsonl", rows)
    write_lines(folder / "metrics.jsonl", lines)
    write_lines(folder / "curriculum.jsonl", draws)
    config = {"trainer": {"nnodes": 1, "n_gpus_per_node": 8}, "s2l": {"explorer": {"mix_steps": int(8 + lift)}}}
    config["actor_rollout_ref"] = {"model": {"path": "a/path/" * 30}}
    (folder / "s2l_config.yaml").write_text(json.dumps(config))
    (folder / "plan.json").write_text(json.dumps({"parameters": {"learner": 8_000_000_000, "explorer": 1_700_000_000}}))
    return folder


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def step_metrics(step: int, lift: float) -> dict:
    share = max(0.0, 1 - step / 8)
    data = {"critic/score/mean": 0.04 * step + lift / 10, "response_length/mean": 1234.5 + step, "actor/entropy": 0.3}
    data |= {"perf/total_num_tokens": 1_000_000, "prompt_length/mean": 100.0, "s2l/explorer/fraction": share}
    data |= {"timing_s/gen": 90.0, "timing_s/old_log_prob": 9.0, "timing_s/update_actor": 30.0, "timing_s/step": 140.0}
    for source, rows in (("explorer", 512 * share), ("learner", 512 * (1 - share))):
        named = {"rows": rows, "reward_mean": 0.5, "tokens": rows * 1000, "response_length_mean": 1000.0}
        named |= {"gen_seconds_sum": rows, "kl_sampler_learner_k3": 1e-7}
        data |= {f"s2l/source/{source}/{name}": value for name, value in named.items() if rows}
    data |= {"s2l/kl/beta": 1e-4 * step, "s2l/kl/accuracy": 0.08 * step, "s2l/kl/rho": 0.005 * step}
    data |= {"s2l/guidance/length": 3072 - 200 * step, "s2l/guidance/groups_with_signal": 0.5}
    return data | {"s2l/curriculum/pass_rate_mean": 0.5, "s2l/curriculum/effective_sample_size": 12_345.0}


def draw(step: int) -> dict:
    histogram, mass = [0] * BINS, [0.0] * BINS
    histogram[step], histogram[3], mass[step], mass[3] = 30, 10, 0.6, 0.4
    fields = {"step": step, "type": "gaussian", "visits": [30, 8, 2], "histogram": histogram, "bucket_mass": mass}
    return fields | {"bucket_draws": [3 if bin_ == step else 0 for bin_ in range(BINS)]}


def answer(number: int, right: bool) -> dict:
    return {"input": f"user\nproblem {number}", "output": f"answer {number}", "acc": float(right)}


def rollout(step: int, session: int) -> dict:
    text = "a long line of reasoning " * 40
    return {"input": "problem", "output": text, "gts": "1", "score": session % 2, "uid": f"p_{session}_0"}


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("browser")
    runs = [write_run(base / "runs" / name, lift) for name, lift in (("grpo", 0.0), ("s2l_po", 2.0))]
    for name, folders in (("one", runs[:1]), ("two", runs)):
        assert cli.main(["report", *map(str, folders), "--out", str(base / name)]) == 0
    return {"base": base, "one": base / "one" / "index.html", "two": base / "two" / "index.html"}


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.parametrize("width", [520, 1100])
def test_the_page_renders_in_full_and_loads_nothing(pages, name, width):
    found = probed(pages[name], pages["base"] / "profile", width)
    assert found["loaded"] == [] and found["cut"] == []
    assert found["page"] <= found["width"] == width
    names = [section for section, _ in found["sections"]]
    assert {"results", "held_out_accuracy", "training", "cost", "samples", "settings"} <= set(names)
    assert ("kl" if name == "one" else "kl_2") in names and min(height for _, height in found["sections"]) > 100


def test_the_console_is_listened_to(pages):
    """Otherwise the test above could not fail."""
    page = pages["base"] / "broken.html"
    page.write_text("<!doctype html><html><head></head><body><script>throw new Error('seen')</script></body></html>")
    assert "Uncaught Error: seen" in console(chromium(page, pages["base"] / "profile", "--dump-dom"))[0]


@pytest.mark.parametrize(
    ("scheme", "paper", "lines"),
    [
        ([], (255, 255, 255), [(0x1F, 0x6F, 0xD1), (0xC8, 0x69, 0x0A)]),
        (["--blink-settings=preferredColorScheme=0"], (0x14, 0x17, 0x1D), [(0x6F, 0xB1, 0xFF), (0xFF, 0xAB, 0x57)]),
    ],
    ids=["light", "dark"],
)
def test_a_screenshot_shows_a_line_of_each_run(pages, scheme, paper, lines):
    image_module = pytest.importorskip("PIL.Image")
    target = pages["base"] / "shot.png"
    done = chromium(
        pages["two"], pages["base"] / "profile", *scheme, "--window-size=1100,2600", f"--screenshot={target}"
    )
    assert console(done) == []
    image = image_module.open(target).convert("RGB")
    counts = {colour: count for count, colour in image.getcolors(maxcolors=1 << 24)}
    assert image.size == (1100, 2600) and image.getpixel((3, 3)) == paper
    assert all(counts.get(line, 0) > 500 for line in lines)
