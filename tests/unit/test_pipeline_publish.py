"""What is pushed to the hub and when it is refused; the hub is a stand-in, nothing leaves this machine."""

from __future__ import annotations

from types import SimpleNamespace

import huggingface_hub
import pytest

from s2l_ext.errors import ConfigError, ResourceError, S2LError
from s2l_ext.pipeline.publish import check_push, push

TOKEN = "hf_" + "a" * 24


def stage(name: str, makes_model: bool = True) -> SimpleNamespace:
    return SimpleNamespace(name=name, does=SimpleNamespace(makes_model=makes_model))


PIPELINE = SimpleNamespace(name="p", stages=[stage("warm_up"), stage("opd"), stage("test", makes_model=False)])


class Hub:
    """Remembers what it was asked; ``broken`` fails at a call of that name."""

    calls: list
    broken = ""

    def __init__(self, token: str) -> None:
        self.token = token

    def _called(self, name: str, *what: object) -> str:
        if name == Hub.broken:
            raise OSError(f"no answer for {self.token}.")
        Hub.calls.append((name, self.token, *what))
        return "https://hub/me/mine"

    def whoami(self) -> str:
        return self._called("whoami")

    def create_repo(self, repository: str, private: bool, exist_ok: bool) -> str:
        return self._called("create_repo", repository, private, exist_ok)

    def upload_folder(self, *, repo_id: str, folder_path: object, commit_message: str) -> str:
        return self._called("upload_folder", repo_id, folder_path)


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [], raising=False)
    monkeypatch.setattr(Hub, "broken", "")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return Hub


def test_the_last_model_is_pushed_with_the_token_of_the_environment(hub, tmp_path) -> None:
    assert check_push("me/mine", PIPELINE, None).name == "opd"
    assert check_push("me/mine", PIPELINE, "warm_up").name == "warm_up"
    assert push(tmp_path, "me/mine") == "https://hub/me/mine"
    assert hub.calls[-2:] == [
        ("create_repo", TOKEN, "me/mine", True, True),  # private
        ("upload_folder", TOKEN, "me/mine", tmp_path),
    ]


@pytest.mark.parametrize(
    "repository, only, environment, says",
    [
        ("mine", None, {}, "--push-to-hub mine: the owner is missing. Write OWNER/NAME."),
        ("me/my model", None, {}, r"--push-to-hub me/my model: Repo id must use .* Write OWNER/NAME\."),
        ("me/mine", None, {"HF_TOKEN": ""}, "HF_TOKEN is not set. Export a token"),
        ("me/mine", None, {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set. Unset it"),
        ("me/mine", "test", {}, "--only test makes no model"),
    ],
)
def test_refused_before_anything_is_asked(hub, monkeypatch, repository, only, environment, says) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=says):
        check_push(repository, PIPELINE, only)
    assert hub.calls == []


@pytest.mark.parametrize(
    "call, says", [("whoami", "Nothing was started"), ("upload_folder", "The model is finished: ")]
)
def test_a_hub_that_refuses_is_named_without_the_token(hub, monkeypatch, tmp_path, call, says) -> None:
    monkeypatch.setattr(Hub, "broken", call)
    with pytest.raises(ResourceError) as caught:
        check_push("me/mine", PIPELINE, None)
        push(tmp_path, "me/mine")
    message = str(caught.value)
    assert "OSError: no answer for ***. " in message and says in message and "HTTPS_PROXY" in message
    assert TOKEN not in message


def test_a_pipeline_without_a_model_has_nothing_to_push() -> None:
    with pytest.raises(S2LError, match="the pipeline p makes no model"):
        check_push("me/mine", SimpleNamespace(name="p", stages=[stage("test", makes_model=False)]), None)
