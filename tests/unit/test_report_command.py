"""``s2l report`` from hand-made runs: its page, what it prints, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from s2l_ext import cli

ACCURACY = "val-core/{}/acc/mean@1"


def write(folder: Path, lines: list[tuple[int, dict]]) -> Path:
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps({"step": step, "data": data}) + "\n" for step, data in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def training(step: int, **more: float) -> tuple[int, dict]:
    return step, {"critic/score/mean": 0.1 * step, "response_length/mean": 20.0 + step, "actor/kl_loss": 0.1, **more}


@pytest.fixture
def plain(tmp_path) -> Path:
    validations = [(step, {ACCURACY.format("toy"): value}) for step, value in ((0, 0.25), (2, 0.5))]
    return write(tmp_path / "plain", [validations[0], training(1), training(2), validations[1]])


@pytest.fixture
def expo(tmp_path) -> Path:
    kl = {"s2l/kl/beta": 0.01, "s2l/kl/accuracy": 0.5}
    return write(tmp_path / "expo", [training(step, **kl) for step in (1, 2, 3)])


def test_a_plain_run_gives_one_page(plain, capsys, read_page):
    assert cli.main(["report", str(plain)]) == 0
    out = plain / "report"
    assert capsys.readouterr().out == f"2 training steps. Open {out / 'index.html'}.\n"
    assert [path.name for path in out.iterdir()] == ["index.html"]
    text = (out / "index.html").read_text()
    page = read_page(text)
    assert page.drawings == 3 and "http" not in text and "<script" not in text
    assert page.links == ["#results", "#held_out_accuracy", "#training", "#cost", "#samples", "#settings"]
    assert "2 training steps. Held-out accuracy on toy: 0.250 → 0.500." in text
    assert "0.1 (step 1) → 0.2 (step 2)" in text and "21 (step 1) → 22 (step 2)" in text
    assert (
        "Explorer" not in text
        and "KL coefficient and" not in text
        and "Not shown: no s2l_config.yaml in the folder." in text
    )
    assert "No training rollouts were kept" in text and "nothing can be counted" in text


def test_kl_and_curriculum_stand_on_the_same_page(expo, capsys, tmp_path, read_page):
    out = tmp_path / "a" / "pages"
    assert cli.main(["report", str(expo), "--out", str(out)]) == 0
    text = (out / "index.html").read_text()
    assert "#kl" in read_page(text).links and "has no such curve" in text
    assert "The run logged no validation" in text
    assert not (expo / "report").exists()


def test_json_is_for_programs(expo, capsys):
    assert cli.main(["report", str(expo), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    nothing = dict.fromkeys(("tokens", "flops", "seconds", "accelerator_seconds"))
    run = {"name": "expo", "folder": str(expo), "steps": 3, "accuracy": {}}
    assert found == {
        "pages": [str(expo / "report" / "index.html")],
        "runs": [run | {"cost": {"learner_only": nothing, "all_in": nothing}}],
        "steps": 3,
        "sections": ["results", "training", "kl"],
    }


def test_a_second_report_replaces_the_first(expo, capsys):
    assert cli.main(["report", str(expo)]) == 0
    write(expo, [training(1)])
    assert cli.main(["report", str(expo)]) == 0
    assert [path.name for path in (expo / "report").iterdir()] == ["index.html"]
    assert "1 training step. Open" in capsys.readouterr().out


def test_a_foreign_page_is_kept(plain, capsys):
    (plain / "index.html").write_text("<p>mine")
    assert cli.main(["report", str(plain), "--out", str(plain)]) == 2
    assert "not made by s2l, so it is kept" in capsys.readouterr().err
    assert (plain / "index.html").read_text() == "<p>mine"


def test_an_out_that_is_a_file_is_refused(plain, capsys):
    assert cli.main(["report", str(plain), "--out", str(plain / "metrics.jsonl")]) == 2
    assert "metrics.jsonl: cannot be written (File exists). Choose another" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (None, "metrics.jsonl: no such file. Give the run's trainer.default_local_dir"),
        ("", "metrics.jsonl: no complete line. The run logged no step yet"),
        ('{"step": 1, "da', "metrics.jsonl: no complete line."),
        (
            '{"step": 1, "data": {}}\nnonsense\n{"step": 2, "data": {}}\n',
            "metrics.jsonl:2: not a metrics line (Expecting",
        ),
        ('[1]\n{"step": 2, "data": {}}\n', "metrics.jsonl:1: not a metrics line"),
        ('{"step": 1e999, "data": {}}\n{"step": 2, "data": {}}\n', "metrics.jsonl:1: not a metrics line"),
        (b"\xff\xfe\x00\n\n\n", "metrics.jsonl:1: not a metrics line"),
    ],
)
def test_metrics_that_cannot_be_read(tmp_path, capsys, metrics, said):
    if metrics is not None:
        (tmp_path / "metrics.jsonl").write_bytes(metrics if isinstance(metrics, bytes) else metrics.encode())
    assert cli.main(["report", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"s2l: error: {tmp_path}/{said}") and captured.err.count("\n") == 1
    assert captured.out == "" and not (tmp_path / "report").exists()


@pytest.mark.parametrize(("name", "reason"), [("none", "no such folder"), ("file", "not a folder")])
def test_a_run_that_is_no_folder(tmp_path, capsys, name, reason):
    (tmp_path / "file").touch()
    assert cli.main(["report", str(tmp_path / name)]) == 2
    assert f"{name}: {reason}. Give the run's trainer.default_local_dir" in capsys.readouterr().err


def test_a_broken_curriculum_line_is_named(expo, capsys):
    (expo / "curriculum.jsonl").write_text("{}\n{}\n")
    assert cli.main(["report", str(expo)]) == 2
    assert "curriculum.jsonl:1: not a curriculum line" in capsys.readouterr().err


def test_a_repeated_step_counts_once_and_its_last_line_wins(tmp_path, capsys):
    run = write(tmp_path / "run", [training(1), training(2), training(2, **{"critic/score/mean": 0.75})])
    assert cli.main(["report", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    assert "0.1 (step 1) → 0.75 (step 2)" in (run / "report" / "index.html").read_text()


def test_values_that_are_no_numbers_are_left_out(tmp_path, capsys):
    run = write(tmp_path / "run", [training(1), training(2, **{"critic/score/mean": float("nan")})])
    assert cli.main(["report", str(run)]) == 0
    text = (run / "report" / "index.html").read_text()
    assert "0.1 (step 1)</td>" in text and "nan" not in text


def test_names_from_the_run_are_escaped(tmp_path, read_page):
    key = ACCURACY.format("<script>alert(1)</script>")
    run = write(tmp_path / "a<b>'c", [(0, {key: 0.5}), training(1, **{key: 1.0})])
    assert cli.main(["report", str(run)]) == 0
    text = (run / "report" / "index.html").read_text()
    read_page(text)
    assert "<script" not in text and "<b>" not in text and "&lt;script&gt;alert(1)" in text


def test_a_run_with_an_explorer_is_shown_by_source(tmp_path):
    rewards = {f"s2l/source/{who}/reward_mean": value for who, value in (("learner", 0.125), ("explorer", 0.875))}
    run = write(tmp_path / "run", [training(1, **rewards, **{"s2l/explorer/fraction": 0.5})])
    assert cli.main(["report", str(run)]) == 0
    text = (run / "report" / "index.html").read_text()
    assert "learner, step 1: 0.125" in text and "explorer, step 1: 0.875" in text
    assert "sampled by the explorer, step 1: 0.5" in text and "all rows, step 1: 21" in text


def test_the_planned_share_lies_under_the_one_that_was_sampled(tmp_path):
    run = write(
        tmp_path / "run", [training(1, **{"s2l/explorer/fraction": 1.0}), training(2, **{"s2l/explorer/fraction": 0.5})]
    )
    (run / "plan.json").write_text(json.dumps({"group_size": 8, "explorer": {"slots": [8, 4, 0]}}))
    assert cli.main(["report", str(run)]) == 0
    text = (run / "report" / "index.html").read_text()
    planned = re.search("class='line plan planned' points='([^']*)'", text)[1].split()
    sampled = re.search("class='line explorer' points='([^']*)'", text)[1].split()
    assert planned == sampled and len(planned) == 2 and "as planned</span>" in text


def test_many_validation_sets_and_samples_have_names(tmp_path, read_page):
    values = {ACCURACY.format(f"set{i}"): i / 10 for i in range(5)} | {"val-core/toy/acc/mean@8": 0.9}
    run = write(tmp_path / "run", [(0, values), training(1)])
    assert cli.main(["report", str(run)]) == 0
    text = (run / "report" / "index.html").read_text()
    assert read_page(text).drawings == 3
    assert "toy, mean of 8: 0.900 (one validation)" in text and "set4, step 0: 0.4" in text


# ---- several runs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path) -> list[Path]:
    """Two runs of the same ten problems: the first solves 4 at last, the second 9, those 4 among them."""
    return [evaluated(tmp_path / name / "run", solved) for name, solved in (("a", 4), ("b", 9))]


def evaluated(folder: Path, solved: int, source: str = "toy") -> Path:
    folder.mkdir(parents=True)
    dumps = folder / "validation"
    dumps.mkdir()
    lines = []
    for step, right in ((0, 1), (2, solved)):
        rows = [{"input": f"user\n{i}?", "output": f"{i} {step}", "acc": float(i < right)} for i in range(10)]
        (dumps / f"{step}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        lines.append((step, {ACCURACY.format(source): right / 10}))
    return write(folder, [*lines[:1], training(1, **{"s2l/explorer/fraction": 0.5}), training(2), *lines[1:]])


def test_two_runs_are_compared_problem_by_problem(pair, capsys, tmp_path, read_page):
    out = tmp_path / "out"
    assert cli.main(["report", *map(str, pair), "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in found["runs"]] == ["a", "b"] and "steps" not in found
    last = found["runs"][1]["accuracy"][ACCURACY.format("toy")]
    assert last["difference"]["value"] == pytest.approx(0.5) and last["difference"]["how"] == "paired"
    low, high = last["difference"]["ci95"]
    assert 0.1 <= low <= 0.3 and 0.7 <= high <= 0.9
    text = (out / "index.html").read_text()
    page = read_page(text)
    assert set(page.links) == {f"#{name}" for name in found["sections"]} | {"#cost", "#settings"}
    assert "b minus a on toy: +0.500, 95 % interval" in text
    assert "(paired): too few problems differ for a verdict." in text
    assert "a, step 2: 0.4" in text and "b, step 2: 0.9" in text
    assert "<polygon class='band learner'" in text and "<polygon class='band explorer'" in text
    assert "Explorer&#39;s share" in text and text.count("Held-out problems it learned to solve: ") == 2


def test_pass_at_k_is_drawn_beside_verls_best(tmp_path, capsys):
    both = {ACCURACY.format("toy").replace("mean@1", "mean@4"): 0.25, "val-core/toy/acc/best@4/mean": 0.68}
    passed = {f"s2l/val/toy/pass@{k}": share for k, share in ((1, 0.25), (2, 0.5), (4, 0.875))}
    folders = [write(tmp_path / name, [(0, both | passed), training(1), (2, both | passed)]) for name in ("a", "b")]
    for runs in (folders[:1], folders):
        assert cli.main(["report", *map(str, runs), "--out", str(tmp_path / "o")]) == 0
        text = (tmp_path / "o" / "index.html").read_text()
        if len(runs) == 1:
            assert "pass@k, toy" in text and "pass@4, step 2: 0.875" in text and "pass@1, step 0: 0.25" in text
            assert "verl&#39;s best@4, biased low, step 2: 0.68" in text
        else:
            assert "pass@4, toy" in text and "b, step 2: 0.875" in text and "biased low" not in text


def test_other_problems_are_compared_as_independent_samples(pair, capsys, tmp_path):
    path = pair[1] / "validation" / "2.jsonl"
    path.write_text(path.read_text().replace("9?", "other"))
    assert cli.main(["report", *map(str, pair), "--out", str(tmp_path / "o"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["runs"][1]["accuracy"][ACCURACY.format("toy")]["difference"]
    assert found["how"] == "independent"
    # by hand: Wilson 4/10 = (0.16818, 0.68733), 9/10 = (0.59585, 0.98212); 0.5 - hypot(0.30415, 0.28733), ...
    assert found["ci95"] == pytest.approx([0.08159, 0.74592], abs=2e-4)


def test_without_dumps_there_is_no_interval(pair, capsys, tmp_path):
    for path in (pair[0] / "validation").iterdir():
        path.unlink()
    assert cli.main(["report", *map(str, pair), "--out", str(tmp_path / "o")]) == 0
    text = (tmp_path / "o" / "index.html").read_text()
    assert capsys.readouterr().out == f"2 runs. Open {tmp_path / 'o' / 'index.html'}.\n"
    assert "+0.500, without an interval." in text and "the number of problems is not known" in text


def test_runs_with_different_validation_sets_are_not_compared(pair, tmp_path):
    other = evaluated(tmp_path / "c", 5, source="other")
    assert cli.main(["report", str(pair[0]), str(other), "--out", str(tmp_path / "o")]) == 0
    assert "not in both" in (tmp_path / "o" / "index.html").read_text()


def test_the_configurations_differences_are_a_table(pair, tmp_path):
    for folder, rate in zip(pair, ("1e-6", "2e-6"), strict=True):
        (folder / "s2l_config.yaml").write_text(f"optim: {{lr: {rate}, seed: 1}}\n")
    assert cli.main(["report", *map(str, pair), "--out", str(tmp_path / "o")]) == 0
    text = (tmp_path / "o" / "index.html").read_text()
    assert "optim.lr</td>" in text and "optim.seed" not in text and "1 settings differ" in text


def test_the_same_run_twice_is_refused(pair, capsys):
    assert cli.main(["report", str(pair[0]), str(pair[0].parent)]) == 2
    assert f"{pair[0].parent} is the same run as {pair[0]}. Give each run once." in capsys.readouterr().err


def test_more_runs_than_an_eye_can_tell_apart_are_refused(pair, tmp_path, capsys):
    runs = [shutil.copytree(pair[0], tmp_path / f"run{place}") for place in range(19)]
    assert cli.main(["report", *map(str, runs)]) == 2
    assert "19 runs: one page tells at most 18 apart." in capsys.readouterr().err


def test_several_runs_go_to_a_folder_of_their_own(pair, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", *map(str, pair)]) == 0
    assert (tmp_path / "outputs" / "report" / "index.html").is_file()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("s2l_config.yaml", "a: [", "s2l_config.yaml: no YAML (while parsing"),
        ("s2l_config.yaml", "- 1", "s2l_config.yaml: holds no mapping. Restore what s2l train wrote"),
        ("plan.json", "{", "plan.json: no JSON (Expecting"),
        ("plan.json", "[]", "plan.json: holds no mapping."),
    ],
)
def test_a_damaged_configuration_is_named(plain, capsys, name, content, said):
    (plain / name).write_text(content)
    assert cli.main(["report", str(plain)]) == 2
    assert f"{plain}/{said}" in capsys.readouterr().err


def test_a_full_disk_leaves_the_earlier_page(plain, capsys, monkeypatch):
    assert cli.main(["report", str(plain)]) == 0
    before = (plain / "report" / "index.html").read_text()

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("s2l_ext.report.page.write_atomically", full)
    assert cli.main(["report", str(plain)]) == 2
    assert "cannot be written (No space left on device)" in capsys.readouterr().err
    assert (plain / "report" / "index.html").read_text() == before


# ---- pipelines ----------------------------------------------------------------------------------------------------


@pytest.fixture
def bridge(tmp_path) -> Path:
    """Two training stages, the second of which has no forward KL, and a table."""
    out = tmp_path / "bridge"
    for stage, key in (("warm_up", "s2l/distill/forward_kl"), ("opd", "s2l/distill/reverse_kl")):
        (out / "stages" / stage).mkdir(parents=True)
        write(out / "stages" / stage / "run", [training(step, **{key: 0.5 / step}) for step in (1, 2, 3)])
    (out / "manifest.json").write_text(json.dumps({"stages": {"toy": {}, "warm_up": {}, "opd": {}}}))
    measured = {"accuracy": 0.5, "standard_error": 0.01, "forward_kl_per_token": 0.1234}
    row = {"stage": "opd", "model": "models/opd", "accuracy": {"table": measured}, "tokens": 12345}
    (out / "table.json").write_text(json.dumps([row | {"accelerator_seconds": 61.2, "flops": 1.5e9}]))
    return out


def test_a_pipelines_stages_lie_end_to_end_on_one_page(bridge, capsys, read_page):
    assert cli.main(["report", str(bridge), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["stages"] == ["warm_up", "opd"] and "distillation" in said["sections"]
    text = Path(said["pages"][0]).read_text()
    assert read_page(text).drawings == 4
    assert read_page(text).links == ["#models", "#held_out_accuracy", "#distillation", "#training"]
    assert "warm_up, step 2: 0.25" in text and "opd, step 5: 0.25" in text
    assert "0.500 ± 0.010" in text and "0.1234" in text and "12,345" in text and "1.50e+09" in text


def test_each_benchmark_and_validation_set_of_a_pipeline_stands_apart(bridge, read_page):
    """The base has two benchmarks, the stage one: 0.1 and 0.5 against 0.8 never share a column."""
    cost = dict.fromkeys(("tokens", "accelerator_seconds", "flops"))
    of = {
        "base": {"aime24": {"accuracy": 0.1, "standard_error": 0.05}, "math500": {"accuracy": 0.5}},
        "opd": {"math500": {"accuracy": 0.8, "reverse_kl_per_token": 0.25}},
    }
    rows = [{"stage": name, "model": name, "accuracy": accuracy} | cost for name, accuracy in of.items()]
    (bridge / "table.json").write_text(json.dumps(rows))
    for stage, keys in (("warm_up", {"toy": 0.25, "hard": 0.125}), ("opd", {"hard": 0.5})):
        found = {f"val-core/{name}/acc/mean@1": value for name, value in keys.items()}
        write(bridge / "stages" / stage / "run", [training(step, **found) for step in (1, 2)])
    assert cli.main(["report", str(bridge)]) == 0
    text = (bridge / "report" / "index.html").read_text()
    models = re.search(r"<table.*?</table>", text, re.DOTALL)[0]
    cells = [re.findall(r"<t[hd][^>]*>([^<]*)", row) for row in models.split("<tr")[1:]]
    assert [row[2:5] for row in cells] == [
        ["aime24: accuracy", "math500: accuracy", "math500: reverse KL"],
        ["0.100 ± 0.050", "0.500", ""],
        ["", "0.800", "0.2500"],
    ]
    hard, toy = (text.index(f"Held-out accuracy, {name}<") for name in ("hard", "toy"))
    assert hard < text.index("warm_up, step 1: 0.125") < text.index("opd, step 3: 0.5") < toy
    assert text.index("warm_up, step 1: 0.25") > toy and text.count("opd, step 3: 0.5") == 1


@pytest.mark.parametrize("content", [None, "[]"])
def test_a_pipeline_that_is_under_way_says_that_its_table_is_missing(bridge, capsys, content):
    (bridge / "table.json").unlink() if content is None else (bridge / "table.json").write_text(content)
    assert cli.main(["report", str(bridge)]) == 0
    assert "table.json is not there yet" in (bridge / "report" / "index.html").read_text()
    assert "2 training stages" in capsys.readouterr().out


def test_a_pipeline_beside_a_run_is_refused(bridge, plain, capsys):
    assert cli.main(["report", str(plain), str(bridge)]) == 2
    assert "the output of a pipeline" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("manifest", "words"), [("{", "no manifest of s2l pipeline"), ('{"stages": {}}', "no training")]
)
def test_a_pipeline_without_stages_or_a_damaged_manifest_is_refused(bridge, capsys, manifest, words):
    (bridge / "manifest.json").write_text(manifest)
    assert cli.main(["report", str(bridge)]) == 2
    assert words in capsys.readouterr().err
