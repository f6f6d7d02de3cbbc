"""`s2l explore` with an engine that needs no model: drawing, going on after kill -9, asking for more, refusals."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from s2l_ext import cli
from s2l_ext.data.prompts import prompt_id
from s2l_ext.data.tokenizers import digest, snapshot
from s2l_ext.errors import ConfigError, DataError, ResourceError, StateMismatch
from s2l_ext.evaluation.driver import SamplingReport, graded
from s2l_ext.evaluation.engines import Machine, Request, Response, Sampling, Setup, VLLMEngine, sample_seed
from s2l_ext.evaluation.model_folder import model_digest, open_model
from s2l_ext.explore.run import Exploration, Placement, explore
from s2l_ext.store.reader import Rollout, RolloutStore, is_store
from s2l_ext.toy.models import SIZES, build_model
from s2l_ext.toy.tokenizer import build_tokenizer
from s2l_ext.toy.world import write_files

STAND_IN = Path(__file__).with_name("explore_stand_in.py")
N = 4
PROMPTS = 6


@pytest.fixture(scope="module")
def stand_in() -> Any:
    spec = importlib.util.spec_from_file_location("explore_stand_in", STAND_IN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_model(SIZES["small"], 0).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("data"), 0, {"train": 2, "val": PROMPTS, "test": 3})["val"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2L_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def job(model: Path, data: Path, tmp_path: Path):
    def of(**changes: Any) -> Exploration:
        sampling = Sampling(**{"n": N, "temperature": 0.7, "max_tokens": 32, **changes.pop("sampling", {})})
        base = {"model": str(model), "data": (data,), "out": tmp_path / "store", "sampling": sampling}
        return Exploration(**{**base, **changes})

    return of


@pytest.fixture
def draw(stand_in: Any):
    """Explore with a new stand-in; what it was asked, and what the run says."""

    def run(job: Exploration, **options: Any) -> tuple[list[tuple[str, int]], SamplingReport]:
        engine = stand_in.StandIn(**options)
        return engine.asked, explore(job, progress=False, open_engines=engine.open)

    return run


def ids_of(data: Path) -> list[str]:
    rows = pq.read_table(data).to_pylist()
    return [prompt_id(row["prompt"], row["extra_info"]) for row in rows]


def check_whole(folder: Path, data: Path, stand_in: Any, n: int = N) -> RolloutStore:
    """Every response of every prompt is there once, and is what an undisturbed run draws."""
    store = RolloutStore(folder)
    found = [(each.prompt_id, each.index) for each in store.every_rollout()]
    assert Counter(found) == Counter((name, index) for name in ids_of(data) for index in range(n))
    for each in store.every_rollout():
        assert_drawn(each, stand_in)
    assert store.complete
    return store


def assert_drawn(each: Rollout, stand_in: Any) -> None:
    assert each.seed == sample_seed(0, each.prompt_id, each.index)
    whole = stand_in.response_to(Request(each.prompt_id, each.index, each.prompt_ids, each.seed))
    assert each.token_ids == whole.token_ids
    assert each.log_probs == pytest.approx(whole.log_probs, rel=1e-6)


# ---- drawing ------------------------------------------------------------------------------------------------------


def test_a_store_holds_what_was_drawn_and_its_grades(job, draw, data: Path, model: Path, stand_in) -> None:
    asked, drawn = draw(job())
    store = check_whole(job().out, data, stand_in)
    assert len(asked) == drawn.responses == N * PROMPTS and drawn.before == 0
    assert drawn.tokens == sum(len(each.token_ids) for each in store.every_rollout()) and drawn.seconds > 0
    rows = {prompt_id(row["prompt"], row["extra_info"]): row for row in pq.read_table(data).to_pylist()}
    tokenizer = build_tokenizer()
    for name, row in rows.items():
        truth = row["reward_model"]["ground_truth"]
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        for each in store.rollouts(name):
            assert each.prompt_ids == list(prompt)
            assert each.text == tokenizer.decode(each.token_ids[:-1])
            assert each.acc == float(each.text == f"\\boxed{{{truth}}}") and not each.truncated
    assert 0 < sum(store.pass_rates().values()) < PROMPTS


def test_the_fingerprint(job, draw, model: Path, data: Path) -> None:
    draw(job(chat_options={"enable_thinking": False}))
    found = RolloutStore(job().out).fingerprint
    assert found["model"] == model_digest(model) and found["model_name"] == "tiny"
    assert found["parameters"] == sum(p.numel() for p in build_model(SIZES["small"], 0).parameters())
    assert found["tokenizer"] == digest(snapshot(str(model), "x"))
    assert found["sampling"] == {
        "temperature": 0.7,
        "top_p": 0.95,
        "top_k": 0,
        "max_tokens": 32,
        "seed": 0,
        "chat_options": {"enable_thinking": False},
    }
    assert found["dtype"] == "float32" and found["log_probs"] == "processed_logprobs"
    assert [each["name"] for each in found["data"]] == [data.name]
    assert found["reward"] == ["s2l_ext.rewards.toy:compute_score"]
    assert str(model.parent) not in json.dumps(found), "folders may move"


def test_a_moved_model_is_the_same(job, draw, model: Path, tmp_path: Path) -> None:
    draw(job())
    moved = shutil.copytree(model, tmp_path / "moved")
    asked, drawn = draw(job(model=str(moved)))
    assert asked == [] and drawn == SamplingReport(before=N * PROMPTS)


# ---- going on -----------------------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_without_repeating(job, draw, data: Path, stand_in) -> None:
    with pytest.raises(KeyboardInterrupt):
        draw(job(), stop_after=9)
    assert graded_of(job().out) == 9, "what was drawn is graded and kept"
    assert is_store(job().out) and not RolloutStore(job().out).complete
    asked, drawn = draw(job())
    assert len(asked) == drawn.responses == N * PROMPTS - drawn.before
    assert drawn.before == 9
    check_whole(job().out, data, stand_in)
    assert draw(job())[0] == []
    check_whole(job().out, data, stand_in)


def graded_of(folder: Path) -> int:
    """Responses on disk, in shards and in the journal."""
    try:
        shards = json.loads((folder / "store.json").read_text())["shards"]
        return sum(shard["rows"] for shard in shards) + (folder / "journal.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


@pytest.fixture
def runs(model: Path, data: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Explores in a new process for each line it is given; see explore_stand_in.py."""
    words = [sys.executable, str(STAND_IN), str(model), str(data), str(tmp_path / "store"), "40"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def start(runs: subprocess.Popen[str]) -> int:
    assert runs.stdin is not None and runs.stdout is not None
    runs.stdin.write("\n")
    runs.stdin.flush()
    return int(runs.stdout.readline())


def status(runs: subprocess.Popen[str]) -> int:
    assert runs.stdout is not None
    return int(runs.stdout.readline())


@pytest.mark.slow
def test_three_kills_at_random_moments(runs, data: Path, tmp_path: Path, stand_in) -> None:
    out, moment, counts = tmp_path / "store", random.Random(time.time_ns()), [0]
    for _ in range(3):
        process = start(runs)
        while graded_of(out) <= counts[-1]:
            time.sleep(0.005)
        time.sleep(moment.uniform(0.0, 0.15))
        os.kill(process, signal.SIGKILL)
        assert status(runs) == -signal.SIGKILL
        counts.append(graded_of(out))
    assert all(0 < count < 40 * PROMPTS for count in counts[1:]), "each kill came in the middle of the work"
    start(runs)
    assert status(runs) == 0
    store = check_whole(out, data, stand_in, n=40)
    assert {path.name for path in out.glob("shard-*.parquet")} == {shard.name for shard in store.manifest.shards}
    assert graded_of(out) == 40 * PROMPTS


def test_only_missing_draws_more_responses_and_prompts(job, draw, data: Path, stand_in) -> None:
    draw(job())
    with pytest.raises(StateMismatch, match=r"made for 4 responses a prompt, now 6 .*--only-missing keeps"):
        draw(job(sampling={"n": 6}))
    asked, _ = draw(job(sampling={"n": 6}, only_missing=True))
    assert {index for _, index in asked} == {4, 5} and len(asked) == 2 * PROMPTS
    check_whole(job().out, data, stand_in, n=6)
    test = data.with_name("test.parquet")
    with pytest.raises(StateMismatch, match=r"made for 6 prompts, of digest .*, now 9 prompts"):
        draw(job(sampling={"n": 6}, data=(data, test)))
    asked, _ = draw(job(sampling={"n": 6}, data=(data, test), only_missing=True))
    assert {name for name, _ in asked} == set(ids_of(test)) and len(asked) == 18
    assert RolloutStore(job().out).counts() == dict.fromkeys([*ids_of(data), *ids_of(test)], 6)
    assert draw(job(sampling={"n": 6}, data=(data, test)))[0] == []


def test_fewer_than_before_is_too_small(job, draw) -> None:
    draw(job())
    with pytest.raises(ConfigError, match=r"--n 2 is too small: --out=.* was made for 4"):
        draw(job(sampling={"n": 2}, only_missing=True))


# ---- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampling": {"n": 0}}, ["--n 0 is too small"]),
        ({"sampling": {"seed": -1}}, ["--seed -1 is too small"]),
        ({"limit": 0}, ["--limit 0"]),
        ({"sampling": {"max_tokens": 0}}, ["--max-tokens 0"]),
        ({"placement": Placement(0)}, ["--engines 0"]),
        ({"machine": Machine(tensor_parallel=0)}, ["--tensor-parallel 0"]),
        ({"sampling": {"temperature": 0.0}}, ["--temperature 0", "--n 4", "--n 1"]),
        ({"sampling": {"temperature": -1.0}}, ["--temperature -1.0"]),
        ({"sampling": {"temperature": float("nan")}}, ["--temperature nan"]),
        ({"sampling": {"top_p": 0.0}}, ["--top-p 0.0"]),
        ({"sampling": {"top_p": 1.5}}, ["--top-p 1.5"]),
        ({"sampling": {"top_k": -1}}, ["--top-k -1"]),
        ({"sampling": {"max_tokens": 5000}}, ["--max-tokens 5000", "2048"]),
        ({"data": (Path("none.parquet"),)}, ["none.parquet"]),
        ({"model": "./none"}, ["--model ./none", "no such folder"]),
        ({"reward": "s2l_ext.none:f"}, ["--reward s2l_ext.none:f"]),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(
    job, draw, changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises((ConfigError, DataError)) as refusal:
        draw(job(**changes))
    assert all(word in str(refusal.value) for word in words)
    assert not job().out.exists()


def test_a_model_without_a_chat_template_is_refused(job, draw, model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match=r"--model .*base: the tokenizer has no chat template.*instruct model"):
        draw(job(model=str(folder)))
    assert not job().out.exists()


def test_a_store_of_another_tokenizer_is_refused(job, draw, model: Path, tmp_path: Path) -> None:
    draw(job())
    other = shutil.copytree(model, tmp_path / "other")
    (other / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    with pytest.raises(StateMismatch, match=r"--out=.*store: .* another model: [0-9a-f]+ \(tiny\), now .* \(other\)"):
        draw(job(model=str(other)))
    path = job().out / "store.json"
    document = json.loads(path.read_text())
    document["fingerprint"]["tokenizer"] = "another"
    path.write_text(json.dumps(document))
    with pytest.raises(StateMismatch, match="another tokenizer: another"):
        draw(job())


def test_a_store_of_another_prompt_set_is_refused(job, draw, data: Path, tmp_path: Path) -> None:
    draw(job())
    with pytest.raises(StateMismatch, match=r"made for 6 prompts, of digest \w+, now 3 prompts"):
        draw(job(data=(data.with_name("test.parquet"),)))
    rows = pq.read_table(data).to_pylist()
    rows[0]["reward_model"]["ground_truth"] = "77"
    table = pq.read_table(data)
    pq.write_table(table.from_pylist(rows, table.schema), changed := tmp_path / "changed.parquet")
    with pytest.raises(StateMismatch, match=r"1 prompts have responses .* another prompt, ground truth or reward"):
        draw(job(data=(changed,), only_missing=True))


def test_an_edited_reward_is_refused(job, draw, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def compute_score(**call): return 0.0\n")
    draw(job(reward=str(mine)))
    assert draw(job(reward=str(mine)))[0] == []
    mine.write_text("def compute_score(**call): return 1.0\n")
    with pytest.raises(StateMismatch, match=r"6 prompts have responses .* another prompt, ground truth or reward"):
        draw(job(reward=str(mine), only_missing=True))


def test_damage_is_found_before_a_model_loads(job, draw) -> None:
    draw(job())
    path = job().out / "shard-000000.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"--out=.*shard-000000\.parquet \(24 responses\) is truncated"):
        draw(job(sampling={"n": 8}, only_missing=True))


def test_a_reward_that_fails_names_the_row_and_keeps_what_was_graded(job, stand_in) -> None:
    pool = stand_in.StandIn()
    with pytest.raises(DataError, match=r"val\.parquet: row \d+: the reward .* failed \(TypeError"):
        explore(job(reward="operator:itemgetter"), False, pool.open)
    assert is_store(job().out)


# ---- engines and graders ------------------------------------------------------------------------------------------


class Batches(VLLMEngine):
    """An engine that holds at most four requests and finishes the oldest at each step."""

    def __init__(self) -> None:
        self.held: list[Request] = []
        self.most = 0

    def add(self, requests: list[Request]) -> None:
        self.held += requests
        self.most = max(self.most, len(self.held))

    @property
    def room(self) -> int:
        return 4 - len(self.held)

    @property
    def unfinished(self) -> int:
        return len(self.held)

    def step(self) -> list[Response]:
        return [Response(self.held.pop(0), [1], False, [0.0])]

    def close(self) -> None:
        self.held.clear()


def requests(count: int) -> Iterator[Request]:
    return (Request("a", index, [1], index) for index in range(count))


def test_an_engine_is_kept_full_and_no_fuller() -> None:
    engine = Batches()
    drawn = [response.request.index for some in engine.draw(requests(11)) for response in some]
    assert drawn == list(range(11)) and engine.most == 4
    assert list(Batches().draw([])) == []


def test_several_engines_or_an_address_use_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Placement().uses_ray
    assert Placement(2).uses_ray and Placement(1, "auto").uses_ray
    monkeypatch.setenv("RAY_ADDRESS", "1.2.3.4:6379")
    assert Placement().uses_ray and Placement().address == "1.2.3.4:6379"
    assert Placement(1, "auto").address == "auto"


def test_what_an_engine_is_made_of_can_be_sent_to_another_process(model: Path) -> None:
    setup = Setup(open_model(str(model)), Sampling(), Machine(), 64)
    there = pickle.loads(pickle.dumps(setup))
    assert there.model.stop_ids == setup.model.stop_ids and there.model.folder == model
    assert there.model.decode([5, 6]) == setup.model.decode([5, 6])


def test_a_model_that_cannot_be_loaded_is_a_refusal(job, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Setup) -> None:
        raise ResourceError("--engine vllm: tiny cannot be loaded")

    monkeypatch.setattr(Setup, "engine", refuse)
    with pytest.raises(ResourceError, match="tiny cannot be loaded"):
        explore(job(), progress=False)


def test_grading_runs_beside_the_drawing_but_not_far_behind() -> None:
    gate, drawn = threading.Event(), []

    def slow(response: Response) -> Rollout:
        gate.wait(20)
        return Rollout("a", response.request.index, 0, [], [], [], False, 0.0, None, "")

    def batches() -> Iterator[list[Response]]:
        for request in requests(10):
            drawn.append(request.index)
            if request.index == 4:
                gate.set()
            yield [Response(request, [1], False, [0.0])]

    found = [each.index for each in graded(slow, batches(), workers=2, waiting=4)]
    assert drawn[:5] == [0, 1, 2, 3, 4], "four responses wait for their grades while the fifth is drawn"
    assert sorted(found) == list(range(10))


# ---- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def command(model: Path, data: Path, tmp_path: Path, stand_in, monkeypatch: pytest.MonkeyPatch):
    from s2l_ext.cli import explore as command

    pool = stand_in.StandIn()
    monkeypatch.setattr(
        command, "explore", lambda job, progress: explore(job, progress=progress, open_engines=pool.open)
    )
    words = ["--model", str(model), "--data", str(data), "--out", str(tmp_path / "store"), "--n", "4"]
    return lambda *more: cli.main(["explore", *words, "--max-tokens", "32", *more])


def test_command(command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command() == 0
    printed = capsys.readouterr()
    assert "drawn        24 responses" in printed.out and "tokens/s; 0 were there before" in printed.out
    assert "24, 4 for each of 6 prompts (complete)" in printed.out
    assert "24/24" in printed.err and "tokens/s" in printed.err
    assert command("--json") == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["drawn"]["responses"] == 0 and found["before"] == found["responses"] == 24
    assert printed.err == ""
    assert command("--n", "5") == 2
    assert "--only-missing" in capsys.readouterr().err
    assert command("--n", "5", "--only-missing", "--json") == 0
    assert json.loads(capsys.readouterr().out)["drawn"]["responses"] == 6


def test_defaults_are_the_papers(model: Path, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from s2l_ext.cli import explore as command

    jobs: list[Exploration] = []
    monkeypatch.setattr(command, "explore", lambda job, progress: jobs.append(job) or SamplingReport())
    monkeypatch.setattr(command, "stats", lambda folder, verify: {"model": "m", "responses": 0, "journal": 0})
    out = str(tmp_path / "s")
    words = ["explore", "--model", "m", "--data", "d.parquet", "--out", out, "--json"]
    assert cli.main(words) == 0
    assert jobs[0].sampling == Sampling(32, 0.7, 0.95, 0, 2048, 0) and jobs[0].placement == Placement(1, None)
    more = ["--top-k", "20", "--seed", "3", "--engines", "2", "--ray-address", "auto", "--chat-option", "a=false"]
    assert cli.main([*words, *more, "--tensor-parallel", "2", "--dtype", "float16", "--limit", "9"]) == 0
    assert jobs[1].sampling.top_k == 20 and jobs[1].sampling.seed == 3 and jobs[1].placement == Placement(2, "auto")
    assert jobs[1].machine == Machine("float16", 2) and jobs[1].chat_options == {"a": False} and jobs[1].limit == 9


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "s2l explore needs --model, --data, --out"),
        (["--model", "m", "--out", "o"], "needs --data"),
        (["--merge", "a", "b"], "s2l explore --merge needs --out"),
        (["--merge", "a", "b", "--out", "c", "--n", "4"], "--n does not apply to --merge"),
        (["--merge", "a", "b", "--out", "c", "--only-missing"], "--only-missing does not apply to --merge"),
        (["--stats", "a", "--out", "c"], "--out does not apply to --stats"),
        (["--stats", "a", "--temperature", "0.7"], "--temperature does not apply to --stats"),
        (["--stats", "a", "--merge", "b", "c", "--out", "d"], "--stats does not apply to --merge"),
    ],
)
def test_options_that_do_not_go_together(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explore", *words]) == 2
    assert said in capsys.readouterr().err
