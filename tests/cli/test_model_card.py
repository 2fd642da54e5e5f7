"""The card of a saved model: what the hub reads of it, what people read of it, and when it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from event_files import evaluated

from dapo_openrlhf.cli.model_card import CARD, METHODS, ModelCards, card
from dapo_openrlhf.config.loading import build_config
from dapo_openrlhf.config.presets import PRESETS
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.pipeline.events import Checkpointed, Evaluated, Rewound, SetEvaluated
from dapo_openrlhf.report.history import Measured
from dapo_openrlhf.types import PolicyVersion

BASE: dict[str, Any] = {
    "run": {"name": "sums"},
    "actor": {"model_name_or_path": "some/model"},
    "data": {"prompt_dataset": ["secret/place/prompts.jsonl", "hf:owner/math@hard:train"]},
    "reward": {"remote_url": "https://reward.example/secret"},
    "eval": {"dataset": "held.jsonl"},
}


def config(**sections: Any) -> Config:
    return build_config(BASE | sections, source="test")


def measured(*events: Evaluated) -> Measured:
    history = Measured({}, first_step=0)
    for one in events:
        history.event(one)
    return history


def hub_card(text: str) -> Any:
    """The card as the hub's own reader has it."""
    return pytest.importorskip("huggingface_hub").ModelCard(text)


def test_the_hub_reads_the_front_matter() -> None:
    data = hub_card(card(config(), measured(), 40)).data.to_dict()
    assert data == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "some/model",
        "datasets": ["owner/math"],
        "tags": ["reinforcement-learning", "dapo", "openrlhf", "dapo_openrlhf"],
    }


@pytest.mark.parametrize(
    ("own", "known"),
    [
        ("---\nlicense: apache-2.0\nbase_model: x/y\n---\n# Model", {"license": "apache-2.0"}),
        (
            "---\r\nlicense: other\nlicense_name: qwen\nlicense_link: LICENSE\n---",
            {"license": "other", "license_name": "qwen"},
        ),
        ("---\nlicense: [a, b]\n---\n", {}),
        ("---\n: : :\n---\n", {}),
        ("# no front matter", {}),
        ("---\n- a list\n---\n", {}),
        (None, {}),
    ],
)
def test_a_licence_is_that_of_the_base_models_own_card(tmp_path: Path, own: str | None, known: dict[str, str]) -> None:
    (tmp_path / "base").mkdir()
    if own is not None:
        (tmp_path / "base" / CARD).write_bytes(own.encode())
    text = card(config(actor={"model_name_or_path": str(tmp_path / "base")}), measured(), 40)
    data = hub_card(text).data.to_dict()
    assert {name: data[name] for name in known} == known
    assert "base_model" not in data, "the hub knows no folder"
    assert ("license" in data) == bool(known)
    assert "`base` trained with" in text and str(tmp_path) not in text


def test_people_read_what_the_run_was() -> None:
    text = card(config(rollout={"top_p": 0.9}, train={"batch_size": 256}), measured(), 1234)
    assert (
        "`some/model` trained with DAPO ([arXiv 2503.14476](https://arxiv.org/abs/2503.14476)): 1,234 rollout steps"
        in text
    )
    assert "of 512 prompts with 16 responses each, asynchronously, with no response older than K = 1 versions" in text
    assert "| `rollout.top_p` | `0.9` |" in text and "| `actor.eps_clip_low_high` | `0.2 0.28` |" in text
    assert "dapo_openrlhf" in text.split("## Versions")[1] and "transformers" in text.split("## Versions")[1]
    assert "`prompts.jsonl`, `hf:owner/math@hard:train`" in text
    assert "secret" not in text and "## Evaluation" not in text


def test_every_preset_has_a_method_and_a_loss_of_its_own_is_named() -> None:
    assert METHODS.keys() == PRESETS.keys()
    actor = {"model_name_or_path": "some/model", "policy_loss_type": "cispo"}
    assert "with the loss cispo ([arXiv 2506.13585]" in card(config(actor=actor), measured(), 1)
    text = card(config(preset="grpo", reward={}), measured(), 1)
    assert "trained with GRPO ([arXiv 2402.03300]" in text and '"grpo"' in text.split("---")[1]


def test_a_system_prompt_breaks_no_table() -> None:
    data = BASE["data"] | {"apply_chat_template": True, "system_prompt": "Say | or\nnothing."}
    assert "| `data.system_prompt` | `Say \\| or\\nnothing.` |" in card(config(data=data), measured(), 1)


def test_evaluations_are_those_of_these_weights_and_of_the_start() -> None:
    history = measured(evaluated(0, 0.25), evaluated(4, 0.5), evaluated(8, 0.75))
    text = card(config(), history, 4)
    assert "| held | 1 | n = 1, T 1, top-p 1, at most 20,480 tokens | 25.0% | 50.0% |  |" in text
    assert "## Evaluation" not in card(config(), history, 6), "was not measured"
    assert "| held | 1 | n = 1, T 1, top-p 1, at most 20,480 tokens |  | 25.0% |  |" in card(config(), history, 0)


def test_every_set_has_a_row() -> None:
    sets = {
        "aime": SetEvaluated(accuracy=0.1, problems=30, responses=60),
        "b": SetEvaluated(accuracy=0.9, problems=5, responses=5),
    }
    event = Evaluated(
        step=2, version=PolicyVersion(2), accuracy=0.1, problems=30, responses=60, seconds=1.0, sets=sets,
        estimates={"avg@2": 0.1, "pass@2": 0.2, "aime/avg@2": 0.1, "aime/pass@1": 0.1, "aime/pass@2": 0.2, "b/pass@1": 0.9},
    )  # fmt: skip
    evaluation = {
        "dataset": ["aime=a.jsonl", "b.jsonl"],
        "sets": {"aime": {"n_samples_per_prompt": 2, "temperature": 0}},
    }
    text = card(config(eval=evaluation), measured(event), 2)
    assert "| aime | 30 | n = 2, greedy, at most 20,480 tokens |  | 10.0% | pass@2 20.0% |" in text
    assert "| b | 5 | n = 1, T 1, top-p 1, at most 20,480 tokens |  | 90.0% |  |" in text


def test_it_is_written_with_each_model_and_anew_when_that_is_measured(tmp_path: Path) -> None:
    history = Measured({}, first_step=0)
    cards = ModelCards(config(), history)
    places = {step: tmp_path / f"step-{step}" for step in (2, 4)}
    for step, place in places.items():
        place.mkdir()
        cards.event(Checkpointed(step=step, path=str(place), seconds=1.0))
        assert f"{step} rollout steps" in (place / CARD).read_text()
    after = (places[4] / CARD).read_text()
    event = evaluated(2, 0.5)
    history.event(event)
    cards.event(event)
    assert "50.0%" in (places[2] / CARD).read_text() and (places[4] / CARD).read_text() == after


def test_a_checkpoint_that_was_removed_gets_none(tmp_path: Path) -> None:
    history = Measured({}, first_step=0)
    cards = ModelCards(config(), history)
    cards.event(Checkpointed(step=2, path=str(tmp_path / "gone"), seconds=1.0))
    cards.event(Rewound(from_step=2, to_step=0, restart=1, max_restarts=1, pause=0.0, message=""))
    cards.event(evaluated(2, 0.5))
    assert not list(tmp_path.iterdir())
