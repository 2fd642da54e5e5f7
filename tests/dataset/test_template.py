"""Faults of chat templates that no error tells are warned about, and templates of every family that are right are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_model import CHARACTERS, make_tiny_tokenizer

from dapo_openrlhf.dataset.bad_rows import BadRow
from dapo_openrlhf.dataset.reading import read_prompt_set
from dapo_openrlhf.dataset.remarks import NamedSet, remarks_on
from dapo_openrlhf.dataset.renderer import Renderer
from dapo_openrlhf.dataset.rules import RowRules
from dapo_openrlhf.dataset.template import NO_ANSWER_BEGUN, SECOND_BEGINNING

LLAMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start|>' + m['role'] + '<|end|>\n\n' + m['content'] | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)
QWEN = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\nHelp.<|im_end|>\n' }}"
    "{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' "
    "+ m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_WITH_SYSTEM_IN_THE_LAST_TURN = (
    "{% set system = messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' else '' %}{{ bos_token }}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST]' + (system if loop.last else '') + m['content'] + '[/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
ALWAYS_THINKS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<User>' + m['content'] }}"
    "{% else %}{{ '<Assistant>' + m['content'].split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<Assistant><think>\n' }}{% endif %}"
)
MAY_THINK = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and loop.last %}"
    "{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' + m['content'] + '<|im_end|>\n' }}{% else %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
HARMONY = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|start|>assistant<|channel|>final<|message|>' + m['content'] }}"
    "{% else %}{{ '<|start|>' + m['role'] + '<|message|>' + m['content'] }}{% endif %}{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
ONE_TURN = "{{ messages[-1]['content'] }}"
PICKY = "{% for m in messages %}{% if m['role'] != 'user' %}{{ raise_exception('users only') }}{% endif %}{{ m['content'] }}{% endfor %}"
RIGHT = {
    "llama": LLAMA,
    "qwen": QWEN,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "mistral with the system turn in the last one": MISTRAL_WITH_SYSTEM_IN_THE_LAST_TURN,
    "always thinks": ALWAYS_THINKS,
    "may think": MAY_THINK,
    "harmony": HARMONY,
    "one turn only": ONE_TURN,
    "takes users only": PICKY,
}
IGNORES_IT = {
    "qwen": QWEN.replace("{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}", ""),
    "gemma": GEMMA.replace("{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}", ""),
    "a blank": QWEN.replace("{{ '<|im_start|>assistant\n' }}", "{{ '\n' }}"),
    "question and answer": "{% for m in messages %}{{ ('Q: ' if m['role'] == 'user' else 'A: ') + m['content'] + '\n' }}{% endfor %}",
    "ends every text": "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}{{ eos_token }}",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A character tokenizer with <bos>, which its template does not need to write."""
    folder = make_tiny_tokenizer(tmp_path_factory.mktemp("model"))
    (folder / "config.json").write_text(json.dumps({"vocab_size": len(CHARACTERS) + 8}))
    return folder


def with_template(model: Path, folder: Path, template: str | None, bos: str | None = "<bos>") -> Path:
    from transformers import AutoTokenizer

    shutil.copytree(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if bos is not None:
        tokenizer.add_special_tokens({"bos_token": bos})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def remarks(folder: Path, row: object, **settings: Any) -> list[str]:
    keys = {"input_key": "input", "label_key": "label", "needs_answer": False, "max_tokens": 10**4, "why_max": ""}
    (made,) = Renderer(RowRules(**{"model": str(folder), **keys, **settings})).render([{"input": row, "label": "2"}])
    assert not isinstance(made, BadRow), made
    return [*made.remarks]


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("name", RIGHT)
def test_a_template_that_is_right_gives_no_warning(model: Path, tmp_path: Path, name: str, system: str | None) -> None:
    takes_it = name not in ("takes users only", "mistral", "always thinks")
    folder = with_template(model, tmp_path / "model", RIGHT[name])
    assert remarks(folder, "1+1=", apply_chat_template=True, system_prompt=system if takes_it else None) == []


def test_a_template_that_is_told_not_to_think_is_right(model: Path, tmp_path: Path) -> None:
    folder = with_template(model, tmp_path / "model", MAY_THINK)
    told = {"enable_thinking": False}
    assert remarks(folder, "1+1=", apply_chat_template=True, chat_template_kwargs=told) == []


@pytest.mark.parametrize("name", IGNORES_IT)
def test_prompts_without_the_beginning_of_an_answer_are_warned_about(model: Path, tmp_path: Path, name: str) -> None:
    folder = with_template(model, tmp_path / "model", IGNORES_IT[name])
    (told,) = remarks(folder, "1+1=", apply_chat_template=True)
    assert told.startswith(NO_ANSWER_BEGUN) and "add_generation_prompt" in told
    if name == "gemma":
        assert repr("<end_of_turn>\n<start_of_turn>model") in told and repr("<end_of_turn>") in told


@pytest.mark.parametrize(
    ("template", "row", "settings"),
    [
        (LLAMA, "<bos>1+1=", {}),
        (LLAMA, "<bos><|start|>user<|end|>\n\n1+1=<|eot|>", {}),  # rendered once more
        (
            GEMMA,
            [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "<bos>c"},
            ],
            {},
        ),
        (LLAMA, "1+1=", {"system_prompt": "<bos>Be brief."}),
        ("{{ bos_token }}" + LLAMA, "1+1=", {}),
        (None, "<bos>1+1=", {"input_template": "<bos>Q: {}"}),
        (None, "1+1=", {"input_template": "<bos><bos>Q: {}"}),
        (None, "<bos><bos>1+1=", {}),
    ],
)
def test_a_second_beginning_is_warned_about(
    model: Path, tmp_path: Path, template: str | None, row: object, settings: dict[str, Any]
) -> None:
    folder = with_template(model, tmp_path / "model", template)
    (told,) = remarks(folder, row, apply_chat_template=template is not None, **settings)
    assert told.startswith(SECOND_BEGINNING) and "'<bos>'" in told


@pytest.mark.parametrize(
    ("template", "bos", "row", "settings"),
    [
        (None, "<bos>", "1+1=", {}),
        (None, "<bos>", "<bos>1+1=", {}),
        (None, "<bos>", "<bos>1+1=", {"input_template": "{}"}),
        (None, "<bos>", "<bos>1+1=", {"input_template": "Q: {}"}),
        (None, "<eos>", "<eos>one text<eos>another", {}),  # a token between texts, as GPT-2 has it
        (None, None, "<bos><bos>1+1=", {}),
        (QWEN, "<|im_start|>", "1+1=", {}),  # SmolLM2's, which begins every turn
        (QWEN, "<eos>", "<eos>1+1=", {}),
    ],
)
def test_one_beginning_and_tokens_that_begin_more_than_texts_are_right(
    model: Path, tmp_path: Path, template: str | None, bos: str | None, row: object, settings: dict[str, Any]
) -> None:
    folder = with_template(model, tmp_path / "model", template, bos)
    told = remarks(folder, row, apply_chat_template=template is not None, **settings)
    assert [one for one in told if one.startswith(SECOND_BEGINNING)] == []


def test_warnings_name_file_number_and_first_row(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = with_template(model, tmp_path / "model", LLAMA)
    file = tmp_path / "prompts.jsonl"
    rows = [{"input": "1+1=", "label": "2"}, {"input": "<bos>2+2=", "label": "4"}, {"input": "<bos>3", "label": "3"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {"input_key": "input", "label_key": "label", "needs_answer": False, "max_tokens": 10**4, "why_max": ""}
    for kept in (False, True):
        rules = RowRules(**{"model": str(folder), "apply_chat_template": True, **keys})
        prompts = read_prompt_set(file, rules, setting="data.prompt_dataset", on_bad_row="refuse", say=print)
        (told,) = remarks_on([NamedSet(name=str(file), setting="data.prompt_dataset", prompts=prompts)])
        assert told.startswith(f"warning: {file} (data.prompt_dataset): 2 of 3 prompts {SECOND_BEGINNING}"), kept
        assert told.endswith(f"(the first: {file}, line 2)")


def test_a_kind_of_warning_is_said_once_for_all_sets(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = with_template(model, tmp_path / "model", LLAMA)
    keys = {"input_key": "input", "label_key": "label", "needs_answer": False, "max_tokens": 10**4, "why_max": ""}
    rules = RowRules(**{"model": str(folder), "apply_chat_template": True, **keys})
    sets = []
    for place, texts in enumerate([["1"], ["2", "<bos>2"], ["<bos>3"], ["<bos>4"], ["<bos>5", "5"], ["<bos>6"]]):
        file = tmp_path / f"{place}.jsonl"
        file.write_text("".join(json.dumps({"input": text, "label": "2"}) + "\n" for text in texts))
        prompts = read_prompt_set(file, rules, setting="eval.dataset", on_bad_row="refuse", say=print)
        sets.append(NamedSet(name=file.name, setting="eval.dataset", prompts=prompts))
    (told,) = remarks_on(sets)
    assert told.startswith(
        "warning: 1.jsonl (eval.dataset), 2.jsonl (eval.dataset), 3.jsonl (eval.dataset) and 2 more: 5 of 7 prompts have"
    )
    assert told.endswith(f"(the first: {tmp_path / '1.jsonl'}, line 2)")
