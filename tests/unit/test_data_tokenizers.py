"""A tokenizer difference is an error that shows the difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from s2l_ext.data.tokenizers import compare, date_warnings, load_tokenizer, require_rows
from s2l_ext.errors import TokenizerMismatch

TEMPLATE = "{% for m in messages %}\n{{ m['content'] }}\n{% endfor %}"
DIFFERENCE = r"""differs from character 30 on: "content'] }}\n{% endfor %}" / "text'] }}\n{% endfor %}" """.strip()
"""Where it differs from one that renders ``text`` in place of ``content``."""


def save_tokenizer(folder: Path, tokens: list[str], template: str | None = TEMPLATE, pad: str = "<pad>") -> str:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")),
        unk_token="<unk>",
        pad_token=pad,
        eos_token="<eos>",
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return str(folder)


BASE = ["<pad>", "<unk>", "<eos>", "a", "b", "c"]


def test_equal_tokenizers_pass(tmp_path):
    compare(save_tokenizer(tmp_path / "a", BASE), save_tokenizer(tmp_path / "b", BASE))


def test_swapped_ids_are_shown_with_both_keys(tmp_path):
    a = save_tokenizer(tmp_path / "a", BASE)
    b = save_tokenizer(tmp_path / "b", ["<pad>", "<unk>", "<eos>", "b", "a", "c"])
    with pytest.raises(TokenizerMismatch) as error:
        compare(a, b, key_a="learner.path", key_b="explorer.path")
    message = str(error.value)
    assert "6 / 6 tokens, 2 differ" in message
    assert "'a': id 3 / id 4" in message and "'b': id 4 / id 3" in message
    assert f"learner.path={a}" in message and f"explorer.path={b}" in message


def test_extra_tokens_show_sizes_and_only_three_examples(tmp_path):
    longer = [*BASE, "d", "e", "f", "g"]
    with pytest.raises(TokenizerMismatch) as error:
        compare(save_tokenizer(tmp_path / "a", BASE), save_tokenizer(tmp_path / "b", longer))
    message = str(error.value)
    assert "6 / 10 tokens, 4 differ" in message
    assert "'d': absent / id 6" in message and "'f'" in message and "'g'" not in message


def test_special_ids_differ(tmp_path):
    b = save_tokenizer(tmp_path / "b", BASE, pad="<eos>")
    with pytest.raises(TokenizerMismatch, match=r"special ids: pad_token_id 0 / 2"):
        compare(save_tokenizer(tmp_path / "a", BASE), b)


def test_a_chat_template_difference_is_shown_where_it_begins(tmp_path):
    b = save_tokenizer(tmp_path / "b", BASE, template=TEMPLATE.replace("content", "text"))
    with pytest.raises(TokenizerMismatch) as error:
        compare(save_tokenizer(tmp_path / "a", BASE), b)
    assert f"\n  chat template: {DIFFERENCE}\n" in str(error.value) and "vocabulary" not in str(error.value)


def test_absent_template(tmp_path):
    b = save_tokenizer(tmp_path / "b", BASE, template=None)
    with pytest.raises(TokenizerMismatch, match="chat template: present / absent"):
        compare(save_tokenizer(tmp_path / "a", BASE), b)


def test_missing_folder_names_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    a = save_tokenizer(tmp_path / "a", BASE)
    with pytest.raises(TokenizerMismatch, match=r"s2l\.explorer\.model_path=.*nowhere: no tokenizer could be loaded"):
        compare(a, str(tmp_path / "nowhere"))


# ---- a model that renders no chat of its own ------------------------------------------------------------------------


def test_the_template_of_a_model_that_is_only_given_ids_is_a_warning(tmp_path):
    a = save_tokenizer(tmp_path / "a", BASE)
    b = save_tokenizer(tmp_path / "b", BASE, template=TEMPLATE.replace("content", "text"))
    assert compare(a, b, "learner.path", "teacher.path", both_render=False) == [
        f"teacher.path={b} has another chat template than learner.path={a} ({DIFFERENCE}). It is given prompts that "
        "learner.path rendered, in a form that it may not have been trained on."
    ]
    assert compare(a, a, both_render=False) == compare(a, a) == []


@pytest.mark.parametrize(
    ("template", "words"), [(None, "present / absent"), (TEMPLATE + "\n", r"differs from character 55 on: '' / '\n')")]
)
def test_a_base_models_missing_template_and_a_trailing_newline_are_warnings_too(tmp_path, template, words):
    b = save_tokenizer(tmp_path / "b", BASE, template=template)
    (warning,) = compare(save_tokenizer(tmp_path / "a", BASE), b, both_render=False)
    assert f"({words}" in warning


def test_other_ids_stay_an_error_where_nothing_is_rendered(tmp_path):
    a, template = save_tokenizer(tmp_path / "a", BASE), TEMPLATE.replace("content", "text")
    b = save_tokenizer(tmp_path / "b", BASE, template=template, pad="<eos>")
    with pytest.raises(TokenizerMismatch) as refused:
        compare(a, b, "a", "b", both_render=False)
    assert str(refused.value) == (
        f"a={a} and b={b} do not share a tokenizer.\n  special ids: pad_token_id 0 / 2\n"
        "  Use two models of one family; sequences of one are fed to the other token by token."
    )


# ---- rows and dates ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [6, 8, None])
def test_a_row_for_every_token_is_enough(tmp_path, rows):
    require_rows("learner.path", save_tokenizer(tmp_path, BASE), rows)


def test_a_token_without_a_row_is_refused_with_both_numbers(tmp_path):
    path = save_tokenizer(tmp_path, BASE)
    with pytest.raises(TokenizerMismatch) as refusal:
        require_rows("learner.path", path, 5)
    expected = f"learner.path={path}: its tokenizer has ids up to 5, its model 5 rows (vocab_size in config.json)."
    assert str(refusal.value).startswith(expected) and "resize_token_embeddings" in str(refusal.value)


def test_a_folder_without_a_tokenizer_is_left_to_who_needs_it(tmp_path):
    require_rows("learner.path", str(tmp_path), 5)


DATED = """{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
Today: {{ date_string }}
{% for m in messages %}{{ m['content'] }}{% endfor %}"""


def test_a_template_that_writes_the_date_is_warned_of_until_it_is_fixed(tmp_path):
    [warning] = date_warnings("learner.path=a", DATED, {})
    assert warning.startswith("learner.path=a: its chat template writes today's date")
    assert "Set +data.apply_chat_template_kwargs.date_string='26 Jul 2024'." in warning
    assert date_warnings("a", DATED, {"date_string": "26 Jul 2024"}) == date_warnings("a", TEMPLATE, {}) == []
    tokenizer = load_tokenizer(save_tokenizer(tmp_path, BASE, DATED), "a")
    chat = [{"role": "user", "content": "hi"}]  # as verl's agent loop and data set call it
    text = tokenizer.apply_chat_template(chat, tokenize=False, date_string="26 Jul 2024")
    assert "Today: 26 Jul 2024" in text


def test_a_template_that_takes_no_date_needs_another(tmp_path):
    [warning] = date_warnings("a", "{{ strftime_now('%Y') }}", {})
    assert warning.endswith("Set actor_rollout_ref.model.custom_chat_template, without it.")
