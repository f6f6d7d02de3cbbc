"""Secrets: recognised by name and by looks, masked where something is written, refused where verl would print them."""

from __future__ import annotations

import json
import re
import sys

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from s2l_ext.errors import ConfigError
from s2l_ext.evaluation.samples import SampleFile
from s2l_ext.launch import train
from s2l_ext.pipeline.plan import Entry, Manifest
from s2l_ext.report.run import read_run
from s2l_ext.store.writer import StoreWriter
from s2l_ext.utils.processes import run_supervised
from s2l_ext.utils.refusal import run_cli
from s2l_ext.utils.secrets import MASK, is_secret_key, masked, masked_text, refuse_secrets

HF = "hf_" + "aB3" * 11
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOOKS = [
    HF,
    "AKIAABCDEFGHIJKLMNOP",
    "ghp_" + "a1" * 18,
    "github_pat_" + "a1" * 20,
    "glpat-" + "x" * 20,
    "sk-" + "proj_" + "k" * 30,
    "AIza" + "b" * 35,
    "xoxb-1234567890-abc",
    "wandb_v1_" + "q" * 40,
    "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
]


@pytest.mark.parametrize(
    "key",
    [
        *("HF_TOKEN", "hf_token", "token", "accessToken", "a.b.judge_api_key", "apiKey", "WANDB_API_KEY"),
        *("password", "db.passwd", "AWS_SECRET_ACCESS_KEY", "secret", "credentials", "private_key", "apikey"),
    ],
)
def test_names_of_secrets(key: str) -> None:
    assert is_secret_key(key)


@pytest.mark.parametrize(
    "key",
    [
        *("max_tokens", "eos_token", "ppo_max_token_len_per_gpu", "tokenizer", "token_ids", "loss_agg_mode", "key"),
        *("data.prompt_key", "image_key", "num_speculative_tokens", "pad_token", "token_level", "keys", "a.token.len"),
    ],
)
def test_names_that_are_no_secrets(key: str) -> None:
    assert not is_secret_key(key)


@pytest.mark.parametrize("secret", LOOKS)
def test_looks_of_secrets_are_masked_inside_a_text(secret: str) -> None:
    assert masked_text(f"before {secret} after") == f"before {MASK} after"
    assert masked({"a": [{"b": f"x={secret}"}]}) == {"a": [{"b": f"x={MASK}"}]}
    with pytest.raises(ConfigError) as refusal:
        refuse_secrets({"judge": {"url": secret}})
    assert str(refusal.value).startswith("judge.url holds") and secret not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"key {COMMIT}", f"key {MASK}"),
        (f"models--x/snapshots/{COMMIT}/config.json", f"models--x/snapshots/{COMMIT}/config.json"),
        (f"owner/name@{COMMIT}", f"owner/name@{COMMIT}"),
        (f"revision: {COMMIT}", f"revision: {COMMIT}"),
        ("a" * 64, "a" * 64),
        ("postgres://user:pass@host/db", f"postgres://user:{MASK}@host/db"),
        ("http://host:8265/a@b", "http://host:8265/a@b"),
        ("curl -H 'Authorization: Bearer abcdefghijk'", f"curl -H 'Authorization: Bearer {MASK}'"),
        ("+judge.api_key=opensesame n=4", f"+judge.api_key={MASK} n=4"),
        ('{"hf_token": "opensesame"}', f'{{"hf_token": "{MASK}"}}'),
        ("max_tokens=64 eos_token=<e>", "max_tokens=64 eos_token=<e>"),
        ("hf_token=null", "hf_token=null"),
    ],
)
def test_texts(text: str, shown: str) -> None:
    assert masked_text(text) == shown


def test_values_keep_their_types_and_numbers_are_no_secrets() -> None:
    plain = {"max_tokens": 64, "token": None, "hf_token": "x", "sha1": COMMIT, "list": [1.5, True], "password": 7}
    assert masked(plain) == plain | {"hf_token": MASK}
    assert masked({"credentials": {"user": "me", "n": 1}}) == {"credentials": {"user": MASK, "n": 1}}


@given(st.text(max_size=200))
def test_masking_twice_changes_nothing_more(text: str) -> None:
    assert masked_text(masked_text(text)) == masked_text(text)


@given(st.sampled_from(LOOKS), st.text("abc =:,'\"{}\n", max_size=20), st.text(" \n,;", min_size=1, max_size=5))
def test_no_surrounding_brings_a_secret_back(secret: str, before: str, after: str) -> None:
    assert secret not in masked_text(f"{before} {secret}{after}")


def test_the_words_of_a_refusal_are_masked_and_cannot_write_to_the_terminal(capsys) -> None:
    def refuse(args: object) -> int:
        raise ConfigError(f"value={HF!r} \x1b[2J\x07\x00 is odd\nsecond line")

    assert run_cli(refuse, object()) == 2
    said = capsys.readouterr().err
    assert said == f"s2l: error: value='{MASK}' \\x1b[2J\\x07\\x00 is odd\nsecond line\n"


def test_nothing_in_verls_configuration_is_taken_for_a_secret(composed_once) -> None:
    plain = OmegaConf.to_container(composed_once("s2l_po/toy", []), resolve=True)
    refuse_secrets(plain)
    assert masked(plain) == json.loads(json.dumps(plain))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("s2l_unused.judge_api_key", "opensesame", "s2l_unused.judge_api_key"),
        ("ray_kwargs.ray_init.runtime_env.env_vars.HF_TOKEN", "x", "ray_kwargs.ray_init.runtime_env.env_vars.HF_TOKEN"),
        ("trainer.note", f"run-{HF}", "trainer.note"),
        ("custom.credentials.user", "myself", "custom.credentials"),
    ],
)
def test_a_run_with_a_secret_in_its_configuration_is_refused(
    monkeypatch, composed_once, key: str, value: str, named: str
) -> None:
    cfg = composed_once("grpo/toy", [])
    OmegaConf.update(cfg, key, value, force_add=True)
    monkeypatch.setattr(train, "compose_config", lambda *rest: cfg)
    with pytest.raises(ConfigError, match=f"^{re.escape(named)} holds what looks like a secret") as refusal:
        train.prepare("grpo/toy", [])
    assert value not in str(refusal.value)


def test_what_passes_the_refusal_is_masked_in_the_files_of_the_run(composed_once) -> None:
    cfg = composed_once("grpo/toy", [])
    OmegaConf.update(cfg, "trainer.note", f"key {COMMIT}", force_add=True)
    written = yaml.safe_load(train._masked_yaml(cfg))
    assert written["trainer"]["note"] == f"key {MASK}" and written["data"]["train_batch_size"] == 16


def test_the_manifest_of_a_pipeline_and_the_head_of_its_logs_are_masked(tmp_path) -> None:
    manifest = Manifest(tmp_path, "p")
    manifest.put("one", Entry("done", "f", {"part": "d"}, {"options": {"judge_api_key": "opensesame"}}))
    assert "opensesame" not in manifest.path.read_text() and f'"judge_api_key": "{MASK}"' in manifest.path.read_text()
    run_supervised([sys.executable, "-c", "pass", f"hf_token={HF}"], tmp_path / "log", lambda: None)
    log = (tmp_path / "log").read_text()
    assert f"hf_token={MASK}" in log and HF not in log


def test_samples_and_stores_continue_under_a_masked_fingerprint(tmp_path) -> None:
    given = {"reward": {"judge_api_key": "opensesame"}, "sampling": {"n": 1}}
    for _ in range(2):
        SampleFile(tmp_path / "s.jsonl", given).close()
    assert "opensesame" not in (tmp_path / "s.jsonl").read_text()
    for _ in range(2):
        StoreWriter(
            tmp_path / "store", {**given, "tokenizer": "t", "data": [], "reward": [f"x {HF}"]}, 1, {"a": "b"}
        ).close()
    assert HF not in (tmp_path / "store" / "store.json").read_text()


def test_the_report_masks_what_an_older_run_wrote(tmp_path) -> None:
    (tmp_path / "s2l_config.yaml").write_text(f"trainer: {{hf_token: {HF}, nnodes: 1}}\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "data": {"a": 1.0}}\n')
    assert read_run(tmp_path).config == {"trainer": {"hf_token": MASK, "nnodes": 1}}
