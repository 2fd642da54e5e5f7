"""verl's prompts, problems and rewards as settings (standard library)."""

from __future__ import annotations

from dapo_openrlhf.config.yaml_text import value_of
from dapo_openrlhf.convert.conversion import Conversion, is_true, whole, with_names
from dapo_openrlhf.convert.verl_names import ROLLOUT
from dapo_openrlhf.convert.verl_taken import Taken


def convert_data(taken: Taken, conversion: Conversion) -> None:
    """Translate what is asked, and what judges the answers. Raises ``NotConvertible`` for numbers that are none."""
    _sets(taken, conversion)
    _rows(taken, conversion)
    _problems(taken, conversion)
    _rewards(taken, conversion)
    prompt = whole(taken.number("data.max_prompt_length", default=512), name="data.max_prompt_length")
    conversion.settings["data.max_len"] = prompt + whole(
        conversion.settings["rollout.max_new_tokens"], name="data.max_response_length"
    )


def _sets(taken: Taken, conversion: Conversion) -> None:
    for theirs, ours in (("data.train_files", "data.prompt_dataset"), ("data.val_files", "eval.dataset")):
        files = taken.get(theirs)
        if isinstance(files, str) and files.startswith("["):
            files = value_of(files)
        several = [str(file) for file in (files if isinstance(files, list) else [files]) if file]
        several = with_names(several) if ours == "eval.dataset" else several
        if several:
            conversion.settings[ours] = several if len(several) > 1 else several[0]
    for theirs, ours in (("data.train_max_samples", "data.max_samples"), ("data.val_max_samples", "eval.max_samples")):
        if (most := whole(taken.number(theirs, default=-1), name=theirs)) > 0:
            conversion.settings[ours] = most


def _rows(taken: Taken, conversion: Conversion) -> None:
    """How a row becomes a prompt."""
    settings = conversion.settings
    for name, value in taken.below("data.apply_chat_template_kwargs").items():
        settings[f"data.chat_template_kwargs.{name}"] = value
    if is_true(taken.get("data.trust_remote_code")):
        settings["actor.trust_remote_code"] = True
    cut = str(taken.get("data.truncation") or "error")
    if is_true(taken.get("data.filter_overlong_prompts")):
        settings["data.on_bad_row"] = "skip"
        conversion.differs(
            "data.filter_overlong_prompts",
            "data.on_bad_row skip leaves out every row that is no prompt, not the long ones alone; they are counted and shown",
        )
    elif cut != "error":
        conversion.differs(
            "data.truncation", f"{cut} cuts long prompts, which are refused here; data.on_bad_row skip leaves them out"
        )


def _problems(taken: Taken, conversion: Conversion) -> None:
    do_sample = taken.get(f"{ROLLOUT}.val_kwargs.do_sample")
    if do_sample is not None and not is_true(do_sample):
        conversion.settings["eval.temperature"] = 0.0
    name = f"{ROLLOUT}.val_kwargs.top_k"
    if (most := taken.number(name, default=-1)) > 0:
        conversion.lacks(name, f"{most:g} is no setting of evaluations, which have eval.temperature and eval.top_p")


def _rewards(taken: Taken, conversion: Conversion) -> None:
    if is_true(taken.get("reward_model.enable", "reward.reward_model.enable")):
        conversion.lacks(
            "reward_model.enable",
            "reward models are not placed by a run; serve one with openrlhf.cli.serve_rm and name its address in "
            "reward.remote_url. Until then the rule judges",
        )
    for prefix in ("reward_model.model", "reward.reward_model"):
        taken.below(prefix)
    if taken.get("custom_reward_function.path", "reward.custom_reward_function.path") is not None:
        taken.get("custom_reward_function.name", "reward.custom_reward_function.name")
        conversion.lacks(
            "custom_reward_function.path",
            "verl calls compute_score(data_source, solution_str, ground_truth); write reward_func(queries, prompts, labels) in "
            "a file for reward.remote_url. Until then the rule judges",
        )
    else:
        conversion.differs(
            "reward",
            "answers are compared by this project's rule; `dapo-openrlhf verify` shows its verdicts on your data",
        )
