"""From rows to prompts: what the model sees, which rows are refused and why, what is kept for the next run."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_model import CHARACTERS, make_tiny_tokenizer

from dapo_openrlhf.config.choices import OnBadRow
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.dataset import cache, reading
from dapo_openrlhf.dataset.bad_rows import BadRow
from dapo_openrlhf.dataset.readers import Readers
from dapo_openrlhf.dataset.reading import read_prompt_set, show
from dapo_openrlhf.dataset.renderer import CUT_ANSWER, OWN_SYSTEM_TURN, UNKNOWN_TOKEN, Rendered, Renderer
from dapo_openrlhf.dataset.rules import RowRules
from dapo_openrlhf.dataset.store import PromptSet
from dapo_openrlhf.dataset.template import CHANGED
from dapo_openrlhf.types import Prompt

pytestmark = pytest.mark.long

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and strict %}{{ raise_exception('no system turns') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% if m.tool_calls is defined %}{{ m.tool_calls[0].name }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[>]{% endif %}{% if not enable_thinking | default(true) %}<no>{% endif %}"
)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(reading, "HEARTBEAT_SECONDS", 1e9)  # the machine may be busy
    return tmp_path / "cache" / "dapo_openrlhf" / "prompts"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A character tokenizer, a chat template, and an embedding without a row for the last character, the line end."""
    folder = make_tiny_tokenizer(tmp_path_factory.mktemp("model"))
    (folder / "config.json").write_text(json.dumps({"vocab_size": len(CHARACTERS) - 1}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def changed(model: Path, folder: Path, file: str, **values: object) -> Path:
    """A copy of a model with other values in one of its files."""
    shutil.copytree(model, folder)
    settings = json.loads((folder / file).read_text()) | values
    (folder / file).write_text(json.dumps(settings))
    return folder


def rules(model: Path, **settings: Any) -> RowRules:
    return RowRules(
        **{
            "model": str(model),
            "input_key": "input",
            "label_key": "label",
            "needs_answer": True,
            "max_tokens": 40,
            "why_max": "data.max_len 50 less rollout.max_new_tokens 10",
        }
        | settings
    )


def one(model: Path, row: object, **settings: Any) -> Rendered | BadRow:
    (made,) = Renderer(rules(model, **settings)).render([row])
    return made


def good(model: Path, row: object, **settings: Any) -> Rendered:
    made = one(model, row, **settings)
    assert isinstance(made, Rendered), made
    return made


def ids(text: str) -> list[int]:
    return [CHARACTERS.index(sign) for sign in text]


def jsonl(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ---------------------------------------------------------------- good rows


def test_a_row_is_text_ids_label_and_the_other_columns(model: Path) -> None:
    row = {"input": "1+1=", "label": ["2"], "level": 3, "more": {"tests": [None, 1.5]}}
    made = good(model, row)
    assert (made.text, made.token_ids, made.label) == ("1+1=", ids("1+1="), ["2"])
    assert made.columns == {"level": 3, "more": {"tests": [None, 1.5]}}
    assert made.remarks == ()


def test_dotted_keys_reach_into_the_columns_of_public_sets(model: Path) -> None:
    row = {"prompt": [{"role": "user", "content": "1+1="}], "reward_model": {"ground_truth": "2", "style": "rule"}}
    keys = {"input_key": "prompt", "label_key": "reward_model.ground_truth"}
    made = good(model, row, apply_chat_template=True, **keys)
    assert (made.text, made.label) == ("[user]1+1=[>]", "2")
    assert made.columns == {"reward_model": {"ground_truth": "2", "style": "rule"}}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1+1=", "[user]1+1=[>]"),
        ("[{1,2},{3}] has how many?", "[user][{1,2},{3}] has how many?[>]"),
        ("[0, 1]", "[user][0, 1][>]"),
        ('[{"role": "user"}]', '[user][{"role": "user"}][>]'),
        ([{"role": "user", "content": "1+1="}], "[user]1+1=[>]"),
        ([{"content": "1+1=", "role": "user", "name": None}], "[user]1+1=[>]"),
        (' [{"role": "user", "content": "1+1="}]\n', "[user]1+1=[>]"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1="}]}],
            "[user]1+1=[>]",
        ),
        (
            [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]},
                {"role": "tool", "content": "3"},
            ],
            "[user]a[assistant]f[tool]3[>]",
        ),
    ],
)
def test_chats_in_every_form_are_rendered(model: Path, value: object, text: str) -> None:
    assert good(model, {"input": value, "label": "2"}, apply_chat_template=True).text == text


def test_a_closing_answer_is_cut_off_and_counted(model: Path) -> None:
    chat = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]
    made = good(model, {"input": chat, "label": "2"}, apply_chat_template=True)
    assert (made.text, made.remarks) == ("[user]1+1=[>]", (CUT_ANSWER,))


def test_the_system_prompt_comes_first_and_a_rows_own_stays(model: Path) -> None:
    settings = {"apply_chat_template": True, "system_prompt": "Sum."}
    made = good(model, {"input": "1+1=", "label": "2"}, **settings)
    assert (made.text, made.remarks) == ("[system]Sum.[user]1+1=[>]", ())
    own = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1+1="}]
    made = good(model, {"input": own, "label": "2"}, **settings)
    assert (made.text, made.remarks) == ("[system]Add.[user]1+1=[>]", (OWN_SYSTEM_TURN,))


def test_the_template_is_told_what_it_looks_at_and_nothing_else(model: Path) -> None:
    row = {"input": "1+1=", "label": "2"}
    settings = {"apply_chat_template": True, "chat_template_kwargs": {"enable_thinking": False}}
    assert good(model, row, **settings).text == "[user]1+1=[>]<no>"
    with pytest.raises(
        ConfigError, match=r"data\.chat_template_kwargs: .* does not look at enable_thinkin; it looks at"
    ):
        good(model, row, apply_chat_template=True, chat_template_kwargs={"enable_thinkin": False})


def test_a_label_of_a_users_own_reward_is_any_value_or_none_at_all(model: Path) -> None:
    for label in ({"want": "9", "cases": [1, "two", None, True]}, "", None, [], float("inf")):
        assert good(model, {"input": "1+1=", "label": label}, needs_answer=False).label == label
    assert good(model, {"input": "1+1="}, needs_answer=False, label_key=None).label == ""


def test_rows_for_an_environment_may_lack_the_label(model: Path) -> None:
    settings: dict[str, Any] = {"needs_answer": False, "may_lack_label": True}
    made = good(model, {"input": "1+1="}, **settings, label_key="gold.number")
    assert made.label is None
    assert made.remarks == ("have no column 'gold.number' (data.label_key), so that their label is None",)
    made = good(model, {"input": "1+1=", "label": None}, **settings)
    assert (made.label, made.remarks) == (None, ())
    made = good(model, {"input": "1+1=", "label": "2"}, **settings)
    assert (made.label, made.remarks) == ("2", ())


# ---------------------------------------------------------------- bad rows

LONG = "1" * 41
TURN = {"role": "user", "content": "1+1="}


@pytest.mark.parametrize(
    ("row", "settings", "kind", "words"),
    [
        (["not", "a", "row"], {}, "unreadable", "holds list, not a mapping"),
        ({"label": "2"}, {}, "prompt", "column 'input' (data.input_key) is missing or empty; it has ['label']"),
        ({"input": None, "label": "2"}, {}, "prompt", "missing or empty"),
        ({"input": "", "label": "2"}, {}, "prompt", "missing or empty"),
        ({"input": " \n ", "label": "2"}, {}, "prompt", "missing or empty"),
        ({"input": [], "label": "2"}, {"apply_chat_template": True}, "prompt", "missing or empty"),
        ({"input": 7, "label": "2"}, {}, "prompt", "the prompt is int, neither text nor a chat list"),
        ({"input": {"role": "user"}, "label": "2"}, {}, "prompt", "the prompt is dict"),
        ({"input": "1+1=", "label": "2", "images": ["a.png"]}, {}, "prompt", "has images; only text"),
        ({"input": [TURN], "label": "2"}, {}, "chat", "needs data.apply_chat_template true"),
        ({"input": json.dumps([TURN]), "label": "2"}, {}, "chat", "needs data.apply_chat_template true"),
        ({"input": [TURN], "label": "2"}, {"input_template": "Q: {}"}, "chat", "needs data.apply_chat_template true"),
        ({"input": ["1+1="], "label": "2"}, {"apply_chat_template": True}, "chat", "'1+1=' is no turn of a chat"),
        ({"input": [{"role": "user"}], "label": "2"}, {"apply_chat_template": True}, "chat", "needs the texts"),
        (
            {"input": [{"from": "human", "value": "1+1="}], "label": "2"},
            {"apply_chat_template": True},
            "chat",
            "'from' and 'value' are named 'role' and 'content' here",
        ),
        ({"input": [TURN | {"role": "wizard"}], "label": "2"}, {"apply_chat_template": True}, "chat", "role 'wizard'"),
        ({"input": [TURN | {"role": "system"}], "label": "2"}, {"apply_chat_template": True}, "chat", "no turn of the role"),
        ({"input": [TURN, TURN | {"role": "system"}], "label": "2"}, {"apply_chat_template": True}, "chat", "ends in a turn"),
        ({"input": [TURN | {"content": 7}], "label": "2"}, {"apply_chat_template": True}, "chat", "content is int"),
        (
            {"input": [TURN | {"content": [{"type": "image", "image": "a.png"}]}], "label": "2"},
            {"apply_chat_template": True},
            "chat",
            "a part of the type 'image'; only text is trained on",
        ),
        (
            {"input": [TURN | {"role": "system"}, TURN], "label": "2"},
            {"apply_chat_template": True, "chat_template_kwargs": {"strict": True}},
            "template",
            "the chat template refuses a chat of system, user: no system turns",
        ),
        ({"input": "1+1=\ud83d", "label": "2"}, {}, "characters", r"the prompt holds '\ud83d', half of a character"),
        ({"input": "1+1=", "label": {"a": "\ud83d"}}, {"needs_answer": False}, "characters", "the label holds"),
        ({"input": "1+1=\n", "label": "2"}, {}, "tokens", r"'\n' has the id 97, for which the model's embedding has no row"),
        ({"input": LONG, "label": "2"}, {}, "length", "41 tokens, 40 leave room for a response (data.max_len 50 less"),
        ({"input": "1" * 10**6, "label": "2"}, {}, "length", "1,000,000 tokens"),
        ({"input": "1+1="}, {}, "label", "column 'label' (data.label_key) is missing or empty; it has ['input']"),
        ({"input": "1+1=", "label": {"want": 2}}, {}, "label", "column 'label' (data.label_key): dict is no answer"),
        ({"input": "1+1=", "label": float("nan")}, {}, "label", "nan is no number"),
        ({"input": "1+1="}, {"needs_answer": False}, "label", "is missing; it has ['input']; data.label_key null"),
    ],
)  # fmt: skip
def test_a_bad_row_says_what_is_wrong_and_what_would_be_right(
    model: Path, row: object, settings: dict[str, Any], kind: str, words: str
) -> None:
    made = one(model, row, **settings)
    assert isinstance(made, BadRow)
    assert made.kind == kind and words in str(made)


def test_blanks_that_become_no_token_are_a_bad_row_and_unknown_characters_a_remark(model: Path, tmp_path: Path) -> None:
    strips = changed(
        model,
        tmp_path / "strips",
        "tokenizer.json",
        normalizer={"type": "Replace", "pattern": {"Regex": "x| "}, "content": ""},
    )
    made = one(strips, {"input": "x x", "label": "2"})
    assert isinstance(made, BadRow)
    assert (made.kind, str(made)) == ("tokens", "the tokenizer makes no token of 'x x'")
    knows = changed(model, tmp_path / "knows", "tokenizer_config.json", unk_token="<pad>")
    assert good(knows, {"input": "½+1", "label": "2"}).remarks == (UNKNOWN_TOKEN,)


def test_a_prompt_that_comes_back_as_another_text_is_a_remark_for_a_users_reward(model: Path, tmp_path: Path) -> None:
    """A query is decoded as a whole, so such a prompt is not its beginning."""
    strip = {"type": "Strip", "strip_left": True, "strip_right": False}
    strips = changed(model, tmp_path / "strips", "tokenizer.json", normalizer=strip)
    blank, plain = ({"input": text, "label": "2"} for text in (" 1+1=", "1+1="))
    assert good(strips, blank, needs_answer=False).remarks == (CHANGED,)
    assert good(strips, plain, needs_answer=False).remarks == ()
    assert good(strips, blank).remarks == (), "the rule takes responses alone"


def test_a_row_that_breaks_the_tokenizer_costs_itself_alone(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = Renderer(rules(model))
    inner = renderer._tokenizer

    class Fragile:
        unk_token_id = bos_token_id = None

        def __call__(self, texts: list[str], **options: object) -> Any:
            if any("!" in text for text in texts):
                raise RuntimeError("panic")
            return inner(texts, **options)

    renderer._tokenizer = Fragile()
    first, second, third = renderer.render([{"input": text, "label": "2"} for text in ("1+", "!", "2+")])
    assert isinstance(first, Rendered) and isinstance(third, Rendered)
    assert (first.token_ids, third.token_ids) == (ids("1+"), ids("2+"))
    assert isinstance(second, BadRow) and "the tokenizer refuses it: RuntimeError: panic" in str(second)


# ---------------------------------------------------------------- tokenizers


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1, 2]", b"\xff\xfe"])
def test_a_tokenizer_that_cannot_be_read_is_named(model: Path, tmp_path: Path, content: bytes | None) -> None:
    broken = changed(model, tmp_path / "broken", "config.json")
    (broken / "tokenizer.json").unlink() if content is None else (broken / "tokenizer.json").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"actor\.model_name_or_path: the tokenizer of {broken} cannot be read"):
        Renderer(rules(broken))


def test_without_a_chat_template_there_are_no_chats(model: Path, tmp_path: Path) -> None:
    plain = changed(model, tmp_path / "plain", "config.json")
    (plain / "chat_template.jinja").unlink()
    with pytest.raises(
        ConfigError, match=r"data\.apply_chat_template: the tokenizer of .* has no chat template; use false"
    ):
        Renderer(rules(plain, apply_chat_template=True))


# ---------------------------------------------------------------- whole files

GOOD_ROWS: list[dict[str, object]] = [{"input": f"{n}+1=", "label": str(n + 1), "n": n} for n in range(600)]


def read(path: Path, which: RowRules, *, on_bad_row: OnBadRow = "refuse") -> tuple[PromptSet, list[str]]:
    said: list[str] = []
    prompts = read_prompt_set(path, which, setting="data.prompt_dataset", on_bad_row=on_bad_row, say=said.append)
    return prompts, said


def expected(path: Path, rows: Sequence[dict[str, object]], numbers: Sequence[int]) -> list[Prompt]:
    return [
        Prompt(
            id=place,
            text=str(row["input"]),
            token_ids=tuple(ids(str(row["input"]))),
            label=row["label"],
            columns={"n": row["n"]},
            source=f"{path}, line {number}",
        )
        for place, (row, number) in enumerate(zip(rows, numbers, strict=True))
    ]


def test_a_file_is_read_in_its_order_by_any_number_of_processes(model: Path, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "prompts.jsonl", GOOD_ROWS)
    prompts, said = read(path, rules(model))
    assert list(prompts) == expected(path, GOOD_ROWS, range(1, 601))
    assert prompts[7] == prompts[-593] == list(prompts)[7] and prompts[598:] == list(prompts)[598:]
    assert said == []
    with Readers(path, rules(model), processes=2) as readers:
        rows = [row for block in readers.blocks() for row in block]
    assert [row.number for row in rows] == list(range(1, 601))


def test_while_it_takes_long_it_says_how_far_it_is(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "HEARTBEAT_SECONDS", -1.0)
    path = jsonl(tmp_path / "prompts.jsonl", GOOD_ROWS)
    _, said = read(path, rules(model))
    counts = [text.removeprefix(f"{path} (data.prompt_dataset): ").partition(" rows")[0] for text in said]
    assert counts == ["256", "512", "600", "600"]
    assert said[-1].endswith("kept for the next run")


def test_a_set_that_was_read_before_is_taken_from_the_cache_until_something_changes(
    model: Path, tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, which = jsonl(tmp_path / "prompts.jsonl", GOOD_ROWS[:5]), rules(model)
    first, _ = read(path, which)
    moved = Path(shutil.copy(path, tmp_path / "moved.jsonl"))
    made: list[RowRules] = []
    inner = Readers

    def counting(path: Path, rules: RowRules) -> Readers:
        made.append(rules)
        return inner(path, rules)

    monkeypatch.setattr(reading, "Readers", counting)
    again, _ = read(moved, which)
    assert made == [] and [replace(p, source="") for p in again] == [replace(p, source="") for p in first]
    assert again[0].source == f"{moved}, line 1"
    assert again.description["identity"] == first.description["identity"]
    other_model = changed(model, tmp_path / "other", "tokenizer_config.json", eos_token="1")
    changes = [replace(which, max_tokens=41), replace(which, label_key="n"), replace(which, model=str(other_model))]
    for change in changes:
        read(path, change)
    jsonl(path, GOOD_ROWS[:6])
    changed_set, _ = read(path, which)
    assert made == [*changes, which]
    assert len(changed_set) == 6 and changed_set.description["identity"] != first.description["identity"]
    assert len(list(cache_folder.iterdir())) == 5, "nothing unfinished stays"


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_a_damaged_set_in_the_cache_is_made_anew(model: Path, tmp_path: Path, cache_folder: Path, damage: str) -> None:
    path, which = jsonl(tmp_path / "prompts.jsonl", GOOD_ROWS[:5]), rules(model)
    whole = list(read(path, which)[0])
    (kept,) = cache_folder.iterdir()
    content = kept.read_bytes()
    flipped = content[:60] + bytes([content[60] ^ 1]) + content[61:]
    kept.write_bytes({"cut": content[:-7], "flipped": flipped, "empty": b"", "foreign": b"x" * 5000}[damage])
    prompts, said = read(path, which)
    assert list(prompts) == whole
    assert len(said) == 1 and "damaged" in said[0]
    assert kept.read_bytes() == content
    assert read(path, which)[1] == []


def test_without_a_place_for_the_cache_a_set_is_read_all_the_same(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = jsonl(tmp_path / "prompts.jsonl", GOOD_ROWS[:5])
    assert list(read(path, rules(model))[0]) == expected(path, GOOD_ROWS[:5], range(1, 6))


def test_a_cache_that_runs_full_is_gone_on_without(
    model: Path, tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Writer(reading.StoreWriter):
        def finish(self, description: Any) -> None:
            if "cache" in str(self._file.name):
                raise OSError(errno.ENOSPC, "No space left on device")
            super().finish(description)

    monkeypatch.setattr(reading, "StoreWriter", Writer)
    path = jsonl(tmp_path / "prompts.jsonl", GOOD_ROWS[:5])
    prompts, said = read(path, rules(model))
    assert list(prompts) == expected(path, GOOD_ROWS[:5], range(1, 6))
    assert len(said) == 1 and "are not kept for the next run" in said[0] and "free some space there" in said[0]
    assert list(cache_folder.iterdir()) == []


def test_the_cache_keeps_what_was_used_last(
    model: Path, tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [jsonl(tmp_path / f"{n}.jsonl", GOOD_ROWS[n : n + 9]) for n in range(3)]
    for path in paths[:2]:
        read(path, rules(model))
    older, newer = sorted(cache_folder.iterdir(), key=lambda kept: kept.stat().st_mtime_ns)
    os.utime(older, (1000, 1000))
    os.utime(newer, (2000, 2000))
    (cache_folder / ".unfinished-old").write_bytes(b"x")
    os.utime(cache_folder / ".unfinished-old", (1000, 1000))
    monkeypatch.setattr(cache, "MOST_BYTES", 2 * newer.stat().st_size + 100)
    read(paths[2], rules(model))
    left = {kept.name for kept in cache_folder.iterdir()}
    assert newer.name in left and older.name not in left and len(left) == 2


BAD_ROWS: list[object] = [
    *GOOD_ROWS[:2],
    {"input": "1+1=\ud83d", "label": "2"},
    {"input": LONG, "label": "2"},
    GOOD_ROWS[2],
    *({"input": "1+1=", "label": {}} for _ in range(5)),
]


def test_bad_rows_are_refused_all_kinds_at_once(model: Path, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "prompts.jsonl", BAD_ROWS)
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write('{"input": cut sh\n')
    for _ in range(2):  # read, and from the cache
        with pytest.raises(ConfigError) as raised:
            read(path, rules(model))
        assert str(raised.value).splitlines() == [
            f"{path} (data.prompt_dataset): 8 of 11 rows are no prompts",
            "  characters: 1 row",
            r"    line 3: the prompt holds '\ud83d', half of a character",
            "  length: 1 row",
            "    line 4: the prompt has 41 tokens, 40 leave room for a response "
            "(data.max_len 50 less rollout.max_new_tokens 10)",
            "  label: 5 rows",
            *(f"    line {line}: column 'label' (data.label_key): dict is no answer; give text or a number" for line in (6, 7, 8)),
            "    and 2 more",
            "  unreadable: 1 row",
            "    line 11: not valid JSON: Expecting value: line 1 column 11 (char 10)",
            "mend or remove them, or leave them out with data.on_bad_row skip",
        ]  # fmt: skip


def test_bad_rows_that_are_skipped_are_counted_and_the_others_keep_their_lines(model: Path, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "prompts.jsonl", BAD_ROWS)
    prompts, said = read(path, rules(model), on_bad_row="skip")
    assert list(prompts) == expected(path, GOOD_ROWS[:3], (1, 2, 5))
    assert len(said) == 1 and "7 of 10 rows are no prompts" in said[0] and "they are left out" in said[0]
    longer, _ = read(path, rules(model, max_tokens=41), on_bad_row="skip")
    assert longer.numbers() == [1, 2, 4, 5]
    assert longer.description["identity"] != prompts.description["identity"], "a resume would draw other rows"
    shorter, _ = read(path, rules(model, max_tokens=39), on_bad_row="skip")
    assert shorter.description["identity"] == prompts.description["identity"], "the same rows are left"


def test_if_no_row_is_left_the_file_is_refused_and_an_empty_one_too(model: Path, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "prompts.jsonl", BAD_ROWS[5:])
    with pytest.raises(ConfigError, match=r"5 of 5 rows are no prompts[\s\S]*none is left"):
        read(path, rules(model), on_bad_row="skip")
    path.write_text("\n \n")
    with pytest.raises(ConfigError, match="holds no prompts"):
        read(path, rules(model), on_bad_row="skip")


def test_only_the_first_rows_are_looked_at_where_that_is_asked_for(model: Path, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "prompts.jsonl", [*GOOD_ROWS[:300], {"broken": True}])
    prompts, _ = read(path, rules(model, max_rows=300))
    assert len(prompts) == 300
    prompts, _ = read(path, rules(model, max_rows=3))
    assert list(prompts) == expected(path, GOOD_ROWS[:3], (1, 2, 3))


def test_what_tables_hold_and_json_does_not_comes_as_text(model: Path, tmp_path: Path) -> None:
    import datetime
    import decimal

    import pyarrow
    import pyarrow.parquet

    row = {
        "input": "1+1=",
        "label": decimal.Decimal("2.50"),
        "day": datetime.date(2024, 2, 29),
        "raw": b"\xff\x00",
        "nothing": None,
    }
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "prompts.parquet")
    (prompt,), _ = read(tmp_path / "prompts.parquet", rules(model, needs_answer=False))
    assert prompt.label == "2.50"
    assert prompt.columns == {"day": "2024-02-29", "raw": "2 bytes", "nothing": None}
    assert prompt.source == f"{tmp_path / 'prompts.parquet'}, row 1"


def test_a_label_of_bytes_is_no_label(model: Path) -> None:
    """A reward would get the words "2 bytes"."""
    made = one(model, {"input": "1+1=", "label": b"2"}, needs_answer=False)
    assert isinstance(made, BadRow) and "column 'label' (data.label_key) holds bytes" in str(made)


def test_a_file_or_a_tokenizer_that_cannot_be_used_is_named_by_the_processes_too(model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text("{")
    with pytest.raises(ConfigError, match=r"prompts\.json, line 1: not valid JSON"):
        read(tmp_path / "prompts.json", rules(model))
    broken = changed(model, tmp_path / "broken", "config.json")
    (broken / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=rf"the tokenizer of {broken} cannot be read"):
        read(jsonl(tmp_path / "prompts.jsonl", GOOD_ROWS[:1]), rules(broken))


def test_a_tokenizer_whose_code_needs_torch_gets_it_and_may_print(model: Path, tmp_path: Path) -> None:
    names = {"auto_map": {"AutoTokenizer": [None, "special.Special"]}, "tokenizer_class": "Special"}
    special = changed(model, tmp_path / "special", "tokenizer_config.json", **names)
    (special / "special.py").write_text(
        "import torch\nfrom transformers import PreTrainedTokenizerFast\nprint('noise')\n"
        "class Special(PreTrainedTokenizerFast):\n    pass\n"
    )
    path = jsonl(tmp_path / "prompts.jsonl", GOOD_ROWS[:3])
    read_rows, _ = read(path, rules(special, trust_remote_code=True))[:2]
    assert list(read_rows) == expected(path, GOOD_ROWS[:3], (1, 2, 3))


def test_a_process_that_dies_is_named(model: Path, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "prompts.jsonl", GOOD_ROWS)
    with Readers(path, rules(model), processes=1) as readers:
        readers._processes[0].kill()
        with pytest.raises(
            ConfigError, match=r"prompts\.jsonl: the process that renders its rows was ended by SIGKILL"
        ):
            list(readers.blocks())


def test_a_prompt_is_shown_as_the_model_sees_it_a_long_one_by_its_ends() -> None:
    prompt = Prompt(id=0, text="<s>½\n", token_ids=(1, 2, 3), source="a.jsonl, line 1")
    assert show(prompt) == r"3 tokens, a.jsonl, line 1: '<s>½\n'"
    long = show(replace(prompt, text="a" * 1000 + "b" * 1000))
    assert long.endswith("b" * 299 + "'") and "'" + "a" * 299 + " [... 1,402 characters ...] b" in long
