"""Prompts are those of OpenRLHF: its own functions, on the same rows with the same tokenizer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_model import CHARACTERS, add_first_token, make_tiny_tokenizer
from transformers import AutoTokenizer

from dapo_openrlhf.dataset.renderer import Rendered, Renderer
from dapo_openrlhf.dataset.rules import RowRules

preprocess_data: Callable[..., tuple[str, object]] = pytest.importorskip(
    "openrlhf.datasets.prompts_dataset"
).preprocess_data
SingleTurnAgentExecutor = pytest.importorskip("openrlhf.utils.agent").SingleTurnAgentExecutor

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module", params=["plain", "adds_bos", "adds_eos"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that adds nothing by itself, or a first token, or a last one."""
    folder = make_tiny_tokenizer(tmp_path_factory.mktemp("model"))
    (folder / "config.json").write_text(json.dumps({"vocab_size": len(CHARACTERS)}))
    (folder / "chat_template.jinja").write_text(CHATML)
    if request.param != "plain":
        add_first_token(folder, "<eos>", 1)
    if request.param == "adds_eos":
        settings = json.loads((folder / "tokenizer.json").read_text())
        settings["post_processor"]["single"].reverse()
        (folder / "tokenizer.json").write_text(json.dumps(settings))
    return folder


def openrlhf_sees(model: Path, row: dict[str, object], **settings: Any) -> tuple[str, object, list[int]]:
    """A row's text, label and token ids on their way to an engine of OpenRLHF's."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    if settings.pop("chat", False):
        settings["apply_chat_template"] = tokenizer.apply_chat_template
    text, label = preprocess_data(row, input_key="input", **settings)
    asked: list[list[int]] = []

    class Engine:
        async def generate(self, prompt_token_ids: list[int], *arguments: object, **options: object) -> Any:
            asked.append(prompt_token_ids)
            output = SimpleNamespace(token_ids=[1], text="", finish_reason="stop", logprobs=None)
            return SimpleNamespace(outputs=[output])

    sampling = SimpleNamespace(max_tokens=8, logprobs=None)
    asyncio.run(SingleTurnAgentExecutor().execute(text, label, sampling, 4096, tokenizer, Engine()))
    return text, label, asked[0]


def we_see(model: Path, row: dict[str, object], **settings: Any) -> tuple[str, object, list[int]]:
    rules = RowRules(
        **{"model": str(model), "input_key": "input", "label_key": "label", "needs_answer": False} | settings,
        max_tokens=4000,
        why_max="",
    )
    (made,) = Renderer(rules).render([row])
    assert isinstance(made, Rendered), made
    return made.text, made.label, list(made.token_ids)


TEXTS = ["1+1=", " 7 = [x] ", "[{1,2},{3}] has how many elements?", "a<eos>b", "two\nlines", "{braces} {} %s"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("label", ["2", 2, 2.5, None, ["2"], {"want": [1, None, True]}])
def test_text_is_what_the_row_says(model: Path, text: str, label: object) -> None:
    row = {"input": text, "label": label}
    assert we_see(model, row) == openrlhf_sees(model, row, label_key="label")


@pytest.mark.parametrize("template", ["Q: {}\nA:", "{}", r"Solve {0} into \boxed{{}}", "{{{}}}", "{0}, again: {0}"])
@pytest.mark.parametrize("text", TEXTS)
def test_text_in_an_input_template(model: Path, text: str, template: str) -> None:
    row = {"input": text, "label": "2"}
    ours = we_see(model, row, input_template=template)
    assert ours == openrlhf_sees(model, row, label_key="label", input_template=template)


@pytest.mark.parametrize(
    "chat",
    [
        *TEXTS,
        [{"role": "user", "content": "1+1="}],
        [{"role": "system", "content": "Sum."}, {"role": "user", "content": "1+1="}],
        [
            {"role": "user", "content": "1+1="},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "and 2+2=?"},
        ],
    ],
)
def test_a_chat_in_the_models_template(model: Path, chat: object) -> None:
    row = {"input": chat, "label": "2"}
    ours = we_see(model, row, apply_chat_template=True)
    assert ours == openrlhf_sees(model, row, label_key="label", chat=True)


def test_without_a_label_key_the_label_is_empty(model: Path) -> None:
    row: dict[str, object] = {"input": "1+1="}
    assert we_see(model, row, label_key=None) == openrlhf_sees(model, row)
