"""What ends a response: the union of what a model's files say, as far as it makes sense."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_model import CHARACTERS, make_tiny_tokenizer
from transformers import AutoTokenizer

from dapo_openrlhf.backend.run.inputs import check_context
from dapo_openrlhf.backend.run.stop_tokens import end_of_turn, stop_tokens
from dapo_openrlhf.backend.run.unfit_models import check_trainable
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.loading import build_config
from dapo_openrlhf.config.settings import Config

PAD, EOS, BANG = 0, 1, CHARACTERS.index("!")
ABSENT = object()

CHATML = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{% for turn in messages %}<|header|>{{ turn.role }}<|header_end|>\n\n{{ turn.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|header|>assistant<|header_end|>\n\n{% endif %}"
)
PHI = (
    "{% for turn in messages %}<|{{ turn.role }}|>\n{{ turn.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}<eos>{% endif %}"
)
PLAIN = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}"
ALWAYS_OPEN = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}<|assistant|>\n"
REFUSING = "{{ raise_exception('no chats') }}"


def model(
    folder: Path,
    *,
    generation: object = EOS,
    config: object = EOS,
    eos: str | None = "<eos>",
    special: tuple[str, ...] = (),
    template: str | None = None,
    **more: object,
) -> str:
    """A folder with the files that say what ends a response; ``ABSENT`` leaves the value, or the whole file, out."""
    make_tiny_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    if eos is None:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings.pop("eos_token")
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    values = {"model_type": "qwen2", "vocab_size": len(CHARACTERS) + len(special), "eos_token_id": config, **more}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not ABSENT}))
    if generation is not ABSENT:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    return str(folder)


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        ({}, (EOS,)),
        ({"generation": ABSENT}, (EOS,)),
        ({"generation": None}, (EOS,)),
        ({"generation": -1}, (EOS,)),
        ({"generation": True}, (EOS,)),
        ({"generation": PAD}, (PAD, EOS)),
        ({"generation": [PAD, EOS]}, (PAD, EOS)),
        ({"generation": "<eos>", "config": ABSENT}, (EOS,)),
        ({"generation": "1", "config": ABSENT}, (EOS,)),
        ({"generation": 1.0, "config": ABSENT}, (EOS,)),
        ({"generation": ABSENT, "config": ABSENT}, (EOS,)),
        ({"generation": ABSENT, "config": [EOS, PAD]}, (PAD, EOS)),
        ({"generation": ABSENT, "config": ABSENT, "text_config": {"eos_token_id": [PAD]}}, (PAD, EOS)),
        ({"generation": ABSENT, "config": EOS, "eos": None}, (EOS,)),
        # Of another model, or a class's default: "!" would end every answer that has one.
        ({"generation": BANG}, (EOS,)),
        ({"generation": ABSENT, "config": BANG}, (EOS,)),
        # With the special token beside it, somebody meant it.
        ({"generation": [EOS, BANG]}, (EOS, BANG)),
        ({"generation": 151643}, (EOS,)),
        ({"generation": [EOS, 151643]}, (EOS,)),
    ],
)
def test_ids_are_those_of_all_files_together(tmp_path: Path, files: dict[str, object], ids: tuple[int, ...]) -> None:
    assert stop_tokens(model(tmp_path / "m", **files), chat=False).ids == ids  # type: ignore[arg-type]


def test_it_is_said_which_they_are_and_what_was_left_out(tmp_path: Path) -> None:
    assert stop_tokens(model(tmp_path / "a", generation=PAD), chat=False).notes == (
        "responses end at '<pad>' (0: generation_config.json), '<eos>' (1: config.json, tokenizer)",
    )
    first, second = stop_tokens(model(tmp_path / "b", generation=500), chat=False).notes
    assert "generation_config.json: eos_token_id [500] has no row in the model's embedding of 98" in second
    first, second = stop_tokens(model(tmp_path / "c", generation=BANG), chat=False).notes
    assert f"generation_config.json: eos_token_id [{BANG}] is ordinary text" in second
    assert first == "responses end at '<eos>' (1: config.json, tokenizer)"


def test_a_model_whose_responses_never_end_is_refused(tmp_path: Path) -> None:
    nowhere = model(tmp_path / "m", generation=ABSENT, config=-1, eos=None)
    with pytest.raises(ConfigError, match=r"no token ends a response of .*set eos_token in its tokenizer_config.json"):
        stop_tokens(nowhere, chat=False)


def test_a_broken_generation_config_is_named(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text("{'eos': 1}")
    with pytest.raises(ConfigError, match=r"generation_config.json: not valid JSON"):
        stop_tokens(folder, chat=False)


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        (LLAMA, "<|eot_id|>"),
        (PHI, "<|end|>"),
        (PLAIN, None),
        (ALWAYS_OPEN, None),
        (REFUSING, None),
    ],
)
def test_the_chat_template_says_what_ends_an_answer(tmp_path: Path, template: str, end: str | None) -> None:
    special = ("<|im_start|>", "<|im_end|>", "<|header|>", "<|header_end|>", "<|eot_id|>", "<|end|>", "<|assistant|>")
    folder = model(tmp_path / "m", special=special, template=template)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    token = None if end is None else tokenizer.convert_tokens_to_ids(end)
    assert end_of_turn(tokenizer) == token
    assert stop_tokens(folder, chat=True).ids == ((EOS,) if token is None else (EOS, token))
    assert stop_tokens(folder, chat=False).ids == (EOS,)


def config(folder: str, max_len: int) -> Config:
    settings = {
        "device": "cpu",
        "actor": {"model_name_or_path": folder},
        "ds": {"attn_implementation": "sdpa", "param_dtype": "fp32"},
        "rollout": {"max_new_tokens": 8},
        "data": {"prompt_dataset": "p.jsonl", "max_len": max_len},
        "reward": {"overlong_buffer_len": 0},
    }
    return build_config(settings, source="test")


def values(folder: str) -> dict[str, object]:
    read: dict[str, object] = json.loads(Path(folder, "config.json").read_text())
    return read


def test_more_tokens_than_the_model_has_positions_are_refused(tmp_path: Path) -> None:
    plain = model(
        tmp_path / "plain", max_position_embeddings=128, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
    )
    check_context(config(plain, 128), values(plain))
    with pytest.raises(ConfigError, match=r"data.max_len: 129 .*more than the 128 positions.*use at most 128"):
        check_context(config(plain, 129), values(plain))
    scaled = model(tmp_path / "scaled", max_position_embeddings=128, rope_scaling={"rope_type": "yarn", "factor": 4.0})
    check_context(config(scaled, 500), values(scaled))
    silent = model(tmp_path / "silent")
    check_context(config(silent, 500), values(silent))


LONG = {"short_factor": [1.0] * 16, "long_factor": [2.0] * 16}


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, r"quantized \(awq; quantization_config"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, r"quantized \(fp8; .*only weights in bf16"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 128},
            "use at most 128 instead of 129",
        ),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 64},
            "scaled by dynamic",
        ),
        ({"rope_scaling": {"rope_type": "longrope", "original_max_position_embeddings": 128, **LONG}}, "at most 128"),
        (
            {"rope_scaling": {"type": "su", **LONG}, "original_max_position_embeddings": 128},
            "data.max_len.* at most 128",
        ),
        (
            {
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default"},
                    "full_attention": {"rope_type": "longrope", "original_max_position_embeddings": 64, **LONG},
                }
            },
            "at most 64",
        ),
    ],
)
def test_a_model_whose_trained_policy_is_not_the_one_that_samples_is_refused(
    stated: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        check_trainable(config("some/model", 129), stated)


@pytest.mark.parametrize(
    "stated",
    [
        {"rope_scaling": None, "quantization_config": None},
        {"rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}, "max_position_embeddings": 64},
        {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "max_position_embeddings": 129},
        {"rope_scaling": {"rope_type": "longrope", "original_max_position_embeddings": 129, **LONG}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}},
    ],
)
def test_scalings_that_are_the_same_for_all_sequences_are_trained(stated: dict[str, object]) -> None:
    check_trainable(config("some/model", 129), stated)
