"""``s2l submit`` through Ray's real job client, against a job server that answers from a script. No Ray is started."""

from __future__ import annotations

import asyncio
import os
import shlex
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from aiohttp import web

from s2l_ext import cli
from s2l_ext.cli.submit import check_words
from s2l_ext.errors import ConfigError, ResourceError
from s2l_ext.launch import submit
from s2l_ext.launch.job_files import runtime_env

NO_SIZES = ("ray_kwargs.ray_init.num_cpus=null", "ray_kwargs.ray_init.num_gpus=null")
TRAIN = ("train", "--config-name", "s2l_po/toy", *NO_SIZES, "trainer.default_local_dir=/shared/run")
JOB = "raysubmit_1"


class JobServer:
    """Ray's job server, as far as the client asks. ``statuses`` are told one by one, the last for ever."""

    def __init__(self) -> None:
        self.submitted: list[dict[str, Any]] = []
        self.uploaded: list[str] = []
        self.stopped: list[str] = []
        self.statuses: list[dict[str, Any]] = [{"status": "SUCCEEDED", "driver_exit_code": 0}]
        self.logs: list[tuple[list[str], bool]] = [([], True)]
        self.version = {"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": ""}

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/api/version", self._version)
        app.router.add_post("/api/jobs/", self._submit)
        app.router.add_get("/api/jobs/{job}", self._info)
        app.router.add_post("/api/jobs/{job}/stop", self._stop)
        app.router.add_get("/api/jobs/{job}/logs/tail", self._tail)
        app.router.add_get("/api/packages/{protocol}/{name}", self._no_package)
        app.router.add_put("/api/packages/{protocol}/{name}", self._upload)
        return app

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response(self.version)

    async def _submit(self, request: web.Request) -> web.Response:
        self.submitted.append(await request.json())
        return web.json_response({"job_id": JOB, "submission_id": JOB})

    async def _info(self, request: web.Request) -> web.Response:
        if request.match_info["job"] != JOB:
            return web.Response(status=404, text=f"Job {request.match_info['job']} does not exist")
        now = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return web.json_response({"type": "SUBMISSION", "entrypoint": "", "submission_id": JOB, **now})

    async def _stop(self, request: web.Request) -> web.Response:
        if request.match_info["job"] != JOB:
            return web.Response(status=404, text=f"Job {request.match_info['job']} does not exist")
        self.stopped.append(request.match_info["job"])
        return web.json_response({"stopped": self.statuses[0]["status"] == "RUNNING"})

    async def _tail(self, request: web.Request) -> web.WebSocketResponse:
        """Sends one script's chunks; a script that does not end well drops the connection."""
        chunks, ends_well = self.logs.pop(0) if len(self.logs) > 1 else self.logs[0]
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        for chunk in chunks:
            await answer.send_str(chunk)
        if ends_well:
            await answer.close()
        else:
            await asyncio.sleep(0.05)
            request.transport.abort()
        return answer

    async def _no_package(self, request: web.Request) -> web.Response:
        return web.Response(status=404)

    async def _upload(self, request: web.Request) -> web.Response:
        await request.read()
        self.uploaded.append(request.match_info["name"])
        return web.Response()


@pytest.fixture
def server(monkeypatch) -> Iterator[JobServer]:
    monkeypatch.setattr(submit, "RECONNECT_SECONDS", 0.01)
    jobs = JobServer()
    loop, started = asyncio.new_event_loop(), threading.Event()

    def serve() -> None:
        asyncio.set_event_loop(loop)
        runner = web.AppRunner(jobs.app(), shutdown_timeout=0)
        loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        loop.run_until_complete(site.start())
        jobs.address = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        started.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert started.wait(10)
    yield jobs
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


@pytest.fixture
def quick(monkeypatch, composed_once):
    monkeypatch.setattr("s2l_ext.launch.job_files.compose_config", composed_once)


def s2l(server: JobServer, *words: str) -> int:
    return cli.main(["submit", "--address", server.address, *words])


# ---- a job ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_job_is_submitted_followed_and_its_success_passed_on(quick, server, capsys):
    server.logs = [(["step 1\n", "step 2\n"], True)]
    assert s2l(server, "--", *TRAIN) == 0
    sent = server.submitted[0]
    assert shlex.split(sent["entrypoint"]) == ["python", "-m", "s2l_ext.cli", *TRAIN]
    assert sent["runtime_env"] == {}
    printed = capsys.readouterr()
    assert printed.out == "step 1\nstep 2\n"
    assert JOB in printed.err


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ({"status": "FAILED", "driver_exit_code": 1}, 1),
        ({"status": "FAILED", "driver_exit_code": 2, "message": "Job entrypoint command failed"}, 2),
        ({"status": "FAILED", "driver_exit_code": -9}, 137),
        ({"status": "FAILED", "driver_exit_code": None, "message": "head node died"}, 1),
        ({"status": "FAILED", "driver_exit_code": 0}, 1),
        ({"status": "STOPPED", "driver_exit_code": None}, 3),
        ({"status": "STOPPED", "driver_exit_code": -15}, 3),
    ],
)
def test_the_end_of_a_job_is_the_exit_code(server, capsys, end, code):
    server.statuses = [end]
    assert s2l(server, "--", "explore", "--model", "m") == code
    assert (end.get("message") or "") in capsys.readouterr().err


def test_no_follow_prints_the_name_alone_and_asks_nothing_more(server, capsys):
    server.statuses = [{"status": "RUNNING"}]
    assert s2l(server, "--no-follow", "--", "eval", "--model", "a b") == 0
    assert capsys.readouterr().out == f"{JOB}\n"
    assert server.submitted[0]["entrypoint"] == "python -m s2l_ext.cli eval --model 'a b'"


def test_a_broken_connection_prints_nothing_twice_and_loses_nothing(server, capsys):
    running, done = {"status": "RUNNING"}, {"status": "SUCCEEDED", "driver_exit_code": 0}
    server.statuses = [running, done]
    server.logs = [(["one\ntw"], False), (["one\n", "two\n"], True), (["one\n", "two\nthree\n"], True)]
    assert s2l(server, "--", "eval") == 0
    assert capsys.readouterr().out == "one\ntwo\nthree\n"


def test_a_server_that_is_gone_is_told_after_a_few_tries(server, monkeypatch, capsys):
    monkeypatch.setattr(submit, "RECONNECT_TRIES", 3)
    server.statuses = [{"status": "RUNNING"}]
    server.logs = [([], False)]
    assert s2l(server, "--", "eval") == 2
    assert f"lost job {JOB} at {server.address}" in capsys.readouterr().err


def test_ctrl_c_leaves_the_job_running_and_says_how_to_stop_it(server, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(submit.JobServer, "_print_log", interrupted)
    assert s2l(server, "--", "eval") == 130
    assert f"s2l submit --address {server.address} --stop {JOB}" in capsys.readouterr().err
    assert server.stopped == []


# ---- stop -----------------------------------------------------------------------------------------------------------


def test_stop_waits_for_the_end(server, monkeypatch, capsys):
    monkeypatch.setattr(submit.time, "sleep", lambda seconds: None)
    server.statuses = [{"status": "RUNNING"}, {"status": "RUNNING"}, {"status": "STOPPED"}]
    assert s2l(server, "--stop", JOB) == 0
    assert server.stopped == [JOB] and capsys.readouterr().out == f"s2l submit: job {JOB}: STOPPED\n"


def test_stopping_what_has_ended_says_how_it_ended(server, capsys):
    server.statuses = [{"status": "FAILED"}]
    assert s2l(server, "--stop", JOB) == 0
    assert "had ended before: FAILED" in capsys.readouterr().out


def test_a_job_that_does_not_stop_is_no_success(server, monkeypatch, capsys):
    monkeypatch.setattr(submit, "STOP_SECONDS", -1.0)
    server.statuses = [{"status": "RUNNING"}]
    assert s2l(server, "--stop", JOB) == 2
    assert "still runs" in capsys.readouterr().err


def test_stopping_an_unknown_job_names_it(server, capsys):
    assert s2l(server, "--stop", "raysubmit_2") == 2
    assert "Job raysubmit_2 does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--follow"], "--follow"),
        (["--no-follow"], "--no-follow"),
        (["--env", "HOME"], "--env"),
        (["--working-dir", "."], "--working-dir"),
        (["--runtime-env", "x.yaml"], "--runtime-env"),
        (["--", "eval"], "a command"),
    ],
)
def test_stop_takes_nothing_that_it_would_ignore(server, capsys, words, named):
    assert s2l(server, "--stop", JOB, *words) == 2
    assert named in capsys.readouterr().err and server.stopped == []


# ---- what is sent ---------------------------------------------------------------------------------------------------


def test_no_variable_of_the_shell_travels_unless_named(server, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "secret-1")
    monkeypatch.setenv("S2L_TOY_DIR", "/shared/toy")
    assert s2l(server, "--env", "S2L_TOY_DIR", "--", "eval") == 0
    assert server.submitted[0]["runtime_env"] == {"env_vars": {"S2L_TOY_DIR": "/shared/toy"}}
    assert "secret-1" not in str(server.submitted)


HF = "hf_" + "a1B2" * 8


@pytest.mark.parametrize(
    ("text", "names", "told"),
    [
        (None, ["WANDB_API_KEY"], "--env WANDB_API_KEY holds"),
        (None, ["HF_TOKEN"], "--env HF_TOKEN holds"),  # which is not set here
        (None, ["HF_TOKEN=hidden-1"], "--env HF_TOKEN holds"),
        (None, [f"INNOCENT={HF}"], "--env INNOCENT holds"),
        (None, ["LOOKS"], "--env LOOKS holds"),
        ("env_vars: {HF_TOKEN: hidden-1}", [], "env.yaml: HF_TOKEN holds"),
        (f"env_vars: {{A: b, INNOCENT: {HF}}}", [], "env.yaml: INNOCENT holds"),
        (f"env_vars: {{TOKEN_FILE: {HF}}}", [], "env.yaml: TOKEN_FILE holds"),
        ("env_vars: {RAY_AUTH_TOKEN: hidden-1}", [], "env.yaml: RAY_AUTH_TOKEN holds"),
        ("pip: ['--extra-index-url=https://me:hidden-1@host/simple']", [], "env.yaml: pip holds"),
    ],
)
def test_secrets_are_refused_in_a_runtime_environment(server, monkeypatch, tmp_path, capsys, text, names, told):
    path = tmp_path / "env.yaml"
    path.write_text(text or "{}")
    monkeypatch.setenv("WANDB_API_KEY", "hidden-2")
    monkeypatch.setenv("LOOKS", HF)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    words = [word for name in names for word in ("--env", name)]
    assert s2l(server, "--runtime-env", str(path), *words, "--", "eval") == 2
    message = capsys.readouterr().err
    assert told in message and server.submitted == [] and message.count("\n") == 1
    assert "before `ray start` or sbatch, a secretKeyRef" in message
    assert "hidden" not in message and HF not in message


def test_names_of_files_with_a_secret_and_other_settings_are_sent():
    shell = {"RAY_AUTH_TOKEN_PATH": "me/token", "AWS_SHARED_CREDENTIALS_FILE": "me/aws", "HF_HOME": "hf"}
    shell |= {"TOKENIZERS_PARALLELISM": "false", "RAY_AUTH_MODE": "token", "S2L_TOY_DIR": "toy"}
    assert runtime_env(None, None, list(shell), shell) == {"env_vars": shell}


def test_the_runtime_environment_of_a_file_is_sent_with_named_variables(server, monkeypatch, tmp_path):
    (tmp_path / "env.yaml").write_text("env_vars: {NCCL_DEBUG: INFO}\nconfig: {setup_timeout_seconds: 60}\n")
    monkeypatch.setenv("MINE", "1")
    assert s2l(server, "--runtime-env", str(tmp_path / "env.yaml"), "--env", "MINE", "--", "eval") == 0
    sent = server.submitted[0]["runtime_env"]
    assert sent["env_vars"] == {"NCCL_DEBUG": "INFO", "MINE": "1"}
    assert sent["config"]["setup_timeout_seconds"] == 60


def test_a_working_folder_is_uploaded(server, tmp_path):
    (tmp_path / "my_run.yaml").write_text("a: 1\n")
    assert s2l(server, "--working-dir", str(tmp_path), "--", "eval") == 0
    assert len(server.uploaded) == 1 and server.uploaded[0].endswith(".zip")
    assert server.submitted[0]["runtime_env"]["working_dir"] == f"gcs://{server.uploaded[0]}"


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        (None, ["MINE=1"], r"--env MINE=\.\.\.: give the name only"),
        (None, ["NOT_SET"], "--env NOT_SET: not set in this shell"),
        (None, ["MINE", "MINE"], "--env MINE: .*given twice"),
        ("env_vars: {MINE: a}", ["MINE"], "--env MINE: .*env.yaml sets it too"),
        ("- a\n", [], "env.yaml: must be a mapping"),
        ("env_vars: [a]\n", [], "env.yaml: must be a mapping"),
        ("env_vars: {OMP_NUM_THREADS: 1}\n", [], r"env.yaml: env_vars.OMP_NUM_THREADS is not text"),
        ("a: [", [], "env.yaml: cannot be read"),
    ],
)
def test_environments_that_cannot_be_meant_are_refused(tmp_path, text, names, message):
    path = tmp_path / "env.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message) as refusal:
        runtime_env(path if text else None, None, names, {"MINE": "hidden"})
    assert "hidden" not in str(refusal.value)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--runtime-env .*none\.yaml: cannot be read"):
        runtime_env(tmp_path / "none.yaml", None, [], {})
    with pytest.raises(ConfigError, match=r"--working-dir .*none: no such folder"):
        runtime_env(None, tmp_path / "none", [], {})
    (tmp_path / "env.yaml").write_text("working_dir: .\n")
    with pytest.raises(ConfigError, match=r"--working-dir .*: .*env\.yaml has a working_dir too"):
        runtime_env(tmp_path / "env.yaml", tmp_path, [], {})


# ---- looked at before it is sent ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to submit"),
        (["s2l", "train"], "'s2l' after --"),
        (["submit", "x"], "'submit' after --"),
        (["train", "--config-name", "s2l_po/toi"], "Did you mean 's2l_po/toy'"),
        ([*TRAIN, "s2l.explorer.mix_step=4"], "Did you mean 's2l.explorer.mix_steps'"),
        ([*TRAIN, "s2l.explorer.mix_steps=0"], "s2l.explorer.mix_steps=0"),
        (
            ["train", "--config-name", "s2l_po/toy"],
            "Set ray_kwargs.ray_init.num_cpus=null ray_kwargs.ray_init.num_gpus=null",
        ),
        (["check", "--config-name", "s2l_po/toy"], "a job joins the cluster"),
        ([*TRAIN, "+trainer.wandb_api_key=abcdef"], "trainer.wandb_api_key holds what looks like a secret"),
    ],
)
def test_a_wrong_command_never_reaches_the_cluster(quick, server, capsys, words, message):
    assert s2l(server, "--", *words) == 2
    assert message in capsys.readouterr().err and server.submitted == []


@pytest.mark.slow
def test_a_recipe_of_this_machine_must_be_sent_along(server, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("S2L_TOY_DIR", "/shared/toy")
    (tmp_path / "my.yaml").write_text(
        "defaults: [/s2l_po/toy, _self_]\nray_kwargs: {ray_init: {num_cpus: null, num_gpus: null}}\n"
    )
    words = ["train", "--config-name", "my.yaml"]
    assert s2l(server, "--", *words) == 2
    assert "--config-name my.yaml is on this machine only" in capsys.readouterr().err
    assert s2l(server, "--working-dir", ".", "--env", "S2L_TOY_DIR", "--", *words) == 0
    assert "default_local_dir" in capsys.readouterr().err  # relative: a warning
    (tmp_path / "other").mkdir()
    assert s2l(server, "--working-dir", "other", "--", *words) == 2
    assert len(server.submitted) == 1
    assert s2l(server, "--", "train", "--config-dir", ".", "--config-name", "my") == 2
    assert "--config-dir . is on this machine only" in capsys.readouterr().err


DATA = ("data.train_files=data/a.parquet", "data.val_files=[data/b.parquet,/shared/c.parquet]")


@pytest.fixture
def looked_at(quick, monkeypatch, tmp_path, capsys):
    """Checks the toy recipe from a folder of its own, and returns its warnings."""
    monkeypatch.chdir(tmp_path)

    def look(*overrides: str, working_dir: str | None = None, **sent: str) -> str:
        check_words([*TRAIN, *overrides], {"working_dir": working_dir, "env_vars": sent})
        return capsys.readouterr().err

    return look


@pytest.mark.slow
def test_relative_files_are_warned_of_by_key_with_the_variable_that_moves_them(looked_at, monkeypatch):
    monkeypatch.setenv("S2L_TOY_DIR", "/only/here")  # which is not sent
    (warning,) = looked_at().splitlines()
    for key in ("data.train_files", "data.val_files", "actor_rollout_ref.model.path", "s2l.explorer.model_path"):
        assert f"{key}=outputs/toy/" in warning
    assert "relative, so looked up in the folder in which the job starts" in warning
    assert "`export S2L_TOY_DIR=/shared/...` and --env S2L_TOY_DIR" in warning
    assert os.environ["S2L_TOY_DIR"] == "/only/here"
    assert looked_at(S2L_TOY_DIR="/shared/toy") == ""
    assert looked_at(working_dir="s3://bucket/code.zip").count("relative") == 1


@pytest.mark.slow
def test_files_that_are_not_in_the_folder_that_travels_are_refused(looked_at, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.train_files=outputs/toy/.*: not in the working folder \(code\)"):
        looked_at(working_dir="code")
    own = {"working_dir": "code", "S2L_TOY_DIR": "/shared/toy"}
    with pytest.raises(ConfigError) as refusal:
        looked_at(*DATA, "reward.custom_reward_function.path=rewards/mine.py", **own)
    message = str(refusal.value)
    assert "data.train_files=data/a.parquet, data.val_files=data/b.parquet, reward.custom_reward_function" in message
    assert "c.parquet" not in message and "S2L_TOY_DIR" not in message and "absolute path on storage" in message
    for name in ("data/a.parquet", "data/b.parquet", "rewards/mine.py"):
        (tmp_path / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "code" / name).touch()
    assert looked_at(*DATA, "reward.custom_reward_function.path=rewards/mine.py", **own) == ""


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("s2l.curriculum={warm_start: rates.parquet}", "s2l.curriculum.warm_start=rates.parquet"),
        *(
            (f"{key}=own/file.yaml", f"{key.removeprefix('+')}=own/file.yaml")
            for key in (
                "actor_rollout_ref.rollout.agent.agent_loop_config_path",
                "actor_rollout_ref.rollout.multi_turn.tool_config_path",
                "+actor_rollout_ref.rollout.multi_turn.interaction_config_path",
                "trainer.v1.sampler.custom_sampler.path",
            )
        ),
        ("actor_rollout_ref.model.path=./model", "actor_rollout_ref.model.path=./model"),
        ("actor_rollout_ref.model.path=Qwen/Qwen3-8B", None),
        ("actor_rollout_ref.model.path='~/model'", None),
        ("data.train_files=s3://bucket/a.parquet", None),
        ("reward.custom_reward_function.path=pkg://mine.rewards", None),
    ],
)
@pytest.mark.slow
def test_which_paths_are_relative(looked_at, override, named):
    also = ["trainer.v1.sampler.custom_sampler.name=Mine"] if "custom_sampler" in override else []
    told = looked_at(override, *also, S2L_TOY_DIR="/shared/toy")
    assert f"{named}: relative" in told if named else "relative" not in told


@pytest.mark.slow
def test_a_store_of_rollouts_is_looked_at_too(quick, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["train", "--config-name", "s2l_po/toy_offline", *NO_SIZES, "trainer.default_local_dir=/shared/run"]
    check_words(words, {"env_vars": {"S2L_TOY_DIR": "/shared/toy"}})
    warning = capsys.readouterr().err
    assert "s2l.explorer.store=outputs/explorer_store: relative" in warning and "--env S2L_STORE_DIR" in warning


# ---- addresses ------------------------------------------------------------------------------------------------------


def test_an_unreachable_cluster_is_one_message(capsys, closed_port):
    address = f"http://127.0.0.1:{closed_port}"
    assert cli.main(["submit", "--address", address, "--", "eval"]) == 2
    message = capsys.readouterr().err
    assert f"the cluster's job server cannot be reached at {address}" in message and "ray start --head" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("address", ["ray://head:10001", "auto", "head:8265", "http://", "http:///x"])
def test_other_forms_of_address_are_refused(address, capsys):
    assert cli.main(["submit", "--address", address, "--stop", JOB]) == 2
    assert f"--address {address}: give the job server's URL" in capsys.readouterr().err


def test_something_else_at_the_address_is_told_apart(server, capsys):
    server.version = {"hello": "world"}
    with pytest.raises(ResourceError, match="does not answer as a Ray job server"):
        submit.JobServer(server.address)
    server.version = {"ray_version": "1.0.0"}
    with pytest.raises(ResourceError, match="Ray version 1.0.0 is running on the cluster"):
        submit.JobServer(server.address)
