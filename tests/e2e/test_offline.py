"""S2L-PO with stored explorer rollouts: for the same rows, the same batches and the same updates as a live explorer's.

The store is made of what a live run's explorer sampled; each step then takes all that its prompts have.
"""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from s2l_ext.algorithms.explorer import LinearAnnealing
from s2l_ext.data.prompts import parquet_table, prompt_ids
from s2l_ext.data.rollout_store import Rollout, RolloutStore
from s2l_ext.data.tokenizers import digest, snapshot
from s2l_ext.explore.writer import StoreWriter

GROUP, PROMPTS, TOTAL = 4, 4, 3
SLOTS = [LinearAnnealing(TOTAL, GROUP).slots(step) for step in range(1, TOTAL + 1)]
RESPONSE = 64
OVERRIDES = (
    f"s2l.explorer.mix_steps={TOTAL}",
    f"trainer.total_training_steps={TOTAL}",
    "trainer.save_freq=1",
    "actor_rollout_ref.rollout.calculate_log_probs=false",
)
MACHINE = ("timing_", "perf/", "seconds")
OWN = ("gpus_held", "stored_rows", "reused_rows", "handed_to_learner")


@pytest.fixture(scope="module")
def live(launch, small_run, tmp_path_factory):
    rollouts = tmp_path_factory.mktemp("rollouts")
    run = launch("s2l_po/toy", *small_run, *OVERRIDES, f"trainer.rollout_data_dir={rollouts}").wait()
    return run, {int(path.stem): [json.loads(line) for line in path.open()] for path in rollouts.iterdir()}


@pytest.fixture(scope="module")
def store(live, toy_dir, tmp_path_factory) -> Path:
    """Every explorer row of the live run, as ``s2l explore`` would have written it."""
    folder = tmp_path_factory.mktemp("store") / "explorer"
    rows = [row for step, slots in enumerate(SLOTS, 1) for row in live[1][step] if session(row) < slots]
    toys = AutoTokenizer.from_pretrained(toy_dir / "models" / "small")
    table = parquet_table([toy_dir / "train.parquet"])
    chats = dict(zip(prompt_ids(table), table.read("prompt"), strict=True))
    rollouts = [rollout(row, toys, chats) for row in rows]
    ids = {one.prompt_id for one in rollouts}
    fingerprint = {
        "model": "live",
        "model_name": "small",
        "tokenizer": digest(snapshot(str(toy_dir / "models" / "small"), "model")),
        "sampling": {"temperature": 0.7, "top_p": 0.95, "top_k": 0, "max_tokens": RESPONSE},
        "data": ["live"],
        "reward": ["toy"],
        "dtype": "float32",
    }
    with StoreWriter(folder, fingerprint, GROUP, dict.fromkeys(ids, "problem")) as writer:
        for one in rollouts:
            writer.add(one)
        writer.finish()
    return folder


def session(row: dict) -> int:
    return int(row["uid"].rsplit("_", 2)[1])


def rollout(row: dict, toys, chats: dict[str, list[dict]]) -> Rollout:
    """A dumped row. A token of the toy is a character; a response shorter than the budget ended with the end token."""
    name, chat = next((name, chat) for name, chat in chats.items() if f"\n{chat[-1]['content']}" in row["input"])
    prompt = toys.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
    text = toys.encode(row["output"], add_special_tokens=False)
    tokens = text if len(text) == RESPONSE else [*text, toys.eos_token_id]
    nothing, number, acc = [0.0] * len(tokens), session(row), row["score"]
    return Rollout(name, number, 0, list(prompt), tokens, nothing, text is tokens, row["score"], acc, row["output"])


@pytest.fixture(scope="module")
def offline(launch, small_run, store):
    words = ("source=offline", "model_path=null", f"store={store}", "too_few=learner")
    own = [f"s2l.explorer.{word}" for word in words]
    return launch("s2l_po/toy", *small_run, *OVERRIDES, *own, "ray_kwargs.ray_init.num_gpus=1").wait()


def test_the_schedule_of_both(live, offline) -> None:
    for run in (live[0], offline):
        assert [run.steps()[step]["s2l/explorer/slots"] for step in range(1, TOTAL + 1)] == SLOTS == [4, 2, 0]


def test_every_number_of_every_step_is_the_same(live, offline) -> None:
    for step in range(1, TOTAL + 1):
        here, there = offline.steps()[step], live[0].steps()[step]
        compared = [key for key in there if not any(word in key for word in MACHINE) and not key.endswith(OWN)]
        assert {"actor/grad_norm", "actor/pg_loss", "critic/advantages/mean"} <= set(compared)
        assert {key: here.get(key) for key in compared} == {key: there[key] for key in compared}, f"step {step}"


def test_what_came_from_the_store_is_counted(offline, store) -> None:
    counts = RolloutStore(store).counts()
    assert sorted(counts.values()) == [2] * PROMPTS + [4] * PROMPTS
    for step, slots in enumerate(SLOTS, 1):
        metrics = offline.steps()[step]
        assert metrics["s2l/explorer/stored_rows"] == metrics["s2l/source/explorer/rows"] == slots * PROMPTS
        assert metrics["s2l/explorer/reused_rows"] == metrics["s2l/explorer/handed_to_learner"] == 0
        assert metrics["s2l/explorer/gpus_held"] == 0
    state = json.loads((offline.folder / f"global_step_{TOTAL}" / "s2l_state.json").read_text())
    assert state["controllers"]["stored_rows"]["used"] == counts
    assert state["fingerprint"]["explorer.store.sha256"] == RolloutStore(store).digest


def test_no_servers_but_the_learners_were_started(live, offline) -> None:
    assert "explorer servers stopped" in live[0].log and "explorer servers stopped" not in offline.log
