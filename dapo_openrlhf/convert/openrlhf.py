"""Commands of OpenRLHF, from its 0.8 to its 0.11, as settings (standard library and the configuration)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dapo_openrlhf.config.foreign import NOT_HERE
from dapo_openrlhf.config.settings import setting_names
from dapo_openrlhf.config.yaml_text import value_of
from dapo_openrlhf.convert.conversion import (
    Conversion,
    NotConvertible,
    divided,
    is_true,
    number,
    place,
    whole,
)
from dapo_openrlhf.convert.openrlhf_names import DOTTED, HARMLESS, MUON, SEVERAL, SINCE_REMOVED
from dapo_openrlhf.convert.openrlhf_sets import convert_sets, several

TRAINING = "openrlhf.cli.train_ppo_ray"
MODULE = re.compile(r"(?:^|.*[/ ])openrlhf[./]cli[./](\w+?)(?:\.py)?$")
"""A module of OpenRLHF's command line, as a name or as a path."""
METRIC = re.compile(r"(?:eval_)?(.+?)_pass(\d+)")
"""OpenRLHF's name for a share of problems that some of so many responses solve."""
LEAST = 3
"""Number of OpenRLHF's flat options by which a command is known that does not name its module."""

DEFAULTS: Mapping[str, Any] = {
    "actor.adam.betas": (0.9, 0.95),
    "actor.adam.lr": 1e-6,
    "actor.eps_clip_low_high": (0.2, 0.2),
    "actor.loss_agg_mode": "token-mean",
    "algo.advantage.estimator": "gae",
    "algo.advantage.is_correction_level": "off",
    "algo.advantage.is_correction_mode": "mask",
    "algo.advantage.is_correction_threshold": (0.5, 5.0),
    "algo.dynamic_filtering_enable": False,
    "algo.kl.init_coef": 0.01,
    "algo.kl.estimator": "k1",
    "critic.adam.betas": (0.9, 0.95),
    "critic.adam.lr": 9e-6,
    "data.label_key": None,
    "data.max_len": 2048,
    "eval.n_samples_per_prompt": 4,
    "eval.temperature": 0.6,
    "reward.clip_range": (-10.0, 10.0),
    "reward.overlong_filtering_enable": False,
    "reward.overlong_buffer_len": None,
    "rollout.batch_size": 1024,
    "rollout.n_samples_per_prompt": 1,
    "train.batch_size": 128,
    "train.max_tokens_per_gpu": 16192,
    "vllm.enable_prefix_caching": False,
}
"""OpenRLHF's defaults that are others than this project's and change what is trained."""


def options_of(words: Sequence[str]) -> dict[str, list[str]]:
    """The options of a command by the names that were written, without dashes. Of a repeated one the last counts."""
    options: dict[str, list[str]] = {}
    values: list[str] | None = None
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            values = [value] if equals else []
            options.pop(name, None)
            options[name] = values
        elif values is not None:
            values.append(word)
    return options


def is_openrlhf_command(words: Sequence[str]) -> bool:
    """Whether arguments of another command are really a command of OpenRLHF."""
    if any(MODULE.match(word) for word in words):
        return True
    flat = {name.replace("-", "_") for name in options_of(words)}
    return len(flat & DOTTED.keys()) >= LEAST


def dotted_name(name: str) -> str:
    """OpenRLHF 0.11's name for an option of any version; the name itself if it is no option."""
    plain = name.replace("-", "_")
    return plain if "." in plain else DOTTED.get(plain, plain)


def convert_openrlhf(words: Sequence[str]) -> Conversion:
    """Translate the words behind ``openrlhf.cli.train_ppo_ray``.

    Raises ``NotConvertible`` if the model or the prompts are missing, or a number is not written out.
    """
    conversion = Conversion()
    conversion.settings |= DEFAULTS
    written: dict[str, str] = {}
    given: dict[str, Any] = {}
    for name, texts in options_of(words).items():
        if texts == [""]:  # a variable that holds nothing, which is OpenRLHF's way to leave out what is a text
            continue
        dotted = dotted_name(name)
        written[dotted] = f"--{name}"
        given[dotted] = _value(_without_further(texts, dotted, conversion))
    _translate(given, written, conversion)
    for name, flag in (("actor.model_name_or_path", "--pretrain"), ("data.prompt_dataset", "--prompt_data")):
        if name not in conversion.settings:
            raise NotConvertible(
                f"the command has no {flag} (since 0.11 --{name}), without which there is nothing to train"
            )
    return conversion


def _without_further(texts: Sequence[str], name: str, conversion: Conversion) -> list[str]:
    """The values of an option, without variables behind them that may hold further options, each of which is said."""
    own = [text for place, text in enumerate(texts) if not place or name in SEVERAL or not text.startswith("$")]
    for text in texts:
        if text not in own:
            conversion.lacks(text, "is not set in there; if it holds options, give them behind the command")
    return own


def _value(texts: Sequence[str]) -> Any:
    match texts:
        case []:
            return True
        case [text]:
            return text if "$" in text else value_of(text)
        case _:
            return [value_of(text) for text in texts]


def _translate(given: dict[str, Any], written: Mapping[str, str], conversion: Conversion) -> None:
    known = setting_names()
    settings, special = conversion.settings, _special(given, written, conversion)
    for name, value in given.items():
        flag = written[name]
        if name in special or name in HARMLESS:
            continue
        if name in SINCE_REMOVED:
            conversion.lacks(flag, SINCE_REMOVED[name])
        elif name in NOT_HERE:
            if value is not False:
                conversion.lacks(flag, NOT_HERE[name])
        elif name in known:
            settings[name] = value
        else:
            conversion.lacks(flag, "no option of OpenRLHF 0.8 to 0.11, and no setting here")
    _agree(conversion, given)


def _special(given: dict[str, Any], written: Mapping[str, str], conversion: Conversion) -> set[str]:
    """Translate what has another form here; returns the names that are done with."""
    settings, done = conversion.settings, set()
    if "actor.eps_clip" in given:
        clip = number(given["actor.eps_clip"], name=written["actor.eps_clip"])
        settings["actor.eps_clip_low_high"] = (clip, clip)
        done.add("actor.eps_clip")
    lengths = [given.get(name) for name in ("prompt_max_len", "rollout.max_new_tokens", "data.max_len")]
    done |= {"prompt_max_len", "rollout.max_new_tokens", "data.max_len"}
    prompt, response, together = lengths
    if response is None:
        response = whole(together or 2048, name="--max_len") - whole(prompt or 1024, name="--prompt_max_len")
    response = whole(response, name="--generate_max_len")
    settings["rollout.max_new_tokens"] = response
    settings["data.max_len"] = whole(
        together or response + whole(prompt or 1024, name="--prompt_max_len"), name="--max_len"
    )
    done |= _schedule(given, written, conversion)
    done |= _asynchrony(given, conversion)
    done |= _placement(given, written, conversion)
    done |= _correction(given, written, conversion)
    done |= convert_sets(given, written, conversion)
    done |= _optimizers(given, written, conversion)
    done |= _rewards(given, written, conversion)
    done |= _best(given, written, conversion)
    if given.get("logger.wandb.key") not in (None, False):
        settings["report.wandb"] = "online"
        conversion.differs(written["logger.wandb.key"], f"report.wandb online; {NOT_HERE['logger.wandb.key']}")
        done.add("logger.wandb.key")
    return done


def _optimizers(given: Mapping[str, Any], written: Mapping[str, str], conversion: Conversion) -> set[str]:
    """Adam is the optimizer here, whose own options are settings; and adapters have no dropout."""
    done = {name for name in ("actor.optim", "critic.optim") if given.get(name) == "adam"}
    for role in ("actor", "critic"):
        if given.get(f"{role}.optim", "adam") == "adam":  # the others' options are not looked at
            done |= {f"{role}.muon.{option}" for option in MUON}
    if given.get("ds.lora.dropout"):
        conversion.settings["ds.lora.dropout"] = 0.0
        conversion.lacks(written["ds.lora.dropout"], "the trained policy is the one that samples, without dropout")
        done.add("ds.lora.dropout")
    return done


def _rewards(given: Mapping[str, Any], written: Mapping[str, str], conversion: Conversion) -> set[str]:
    if "train.agent_func_path" in given:
        if "reward.remote_url" in given:
            conversion.differs(
                written["reward.remote_url"], "left out, because --agent_func_path gives the rewards, there too"
            )
    elif "reward.remote_url" in given:
        addresses = several(given["reward.remote_url"])
        conversion.settings["reward.remote_url"] = addresses[0]
        if len(addresses) > 1:
            conversion.lacks(
                written["reward.remote_url"],
                f"only the first of {len(addresses)} addresses is written; put a load balancer before them",
            )
    else:
        conversion.differs(
            "reward", "no --remote_rm_url: answers are compared by the rule, with the column of data.label_key"
        )
    return {"reward.remote_url"}


def _best(given: Mapping[str, Any], written: Mapping[str, str], conversion: Conversion) -> set[str]:
    """The figure of an evaluation that is kept: ``eval_SET_pass1`` there, ``SET/pass@1`` here."""
    key = given.get("ckpt.best_metric_key")
    form = METRIC.fullmatch(str(key))
    if form is None:
        return set()
    name, samples = form[1], form[2]
    sets = conversion.settings.get("eval.dataset")
    one = not isinstance(sets, list)
    conversion.settings["ckpt.best_metric_key"] = f"pass@{samples}" if one else f"{name}/pass@{samples}"
    conversion.differs(written["ckpt.best_metric_key"], f"{key} is {conversion.settings['ckpt.best_metric_key']} here")
    return {"ckpt.best_metric_key"}


def _schedule(given: Mapping[str, Any], written: Mapping[str, str], conversion: Conversion) -> set[str]:
    """Lengths in rollout steps, from episodes and shares."""
    settings, names = (
        conversion.settings,
        {"train.num_episodes", "data.max_samples", "actor.lr_warmup_ratio", "actor.lr_scheduler"},
    )
    batch = whole(given.get("rollout.batch_size", 1024), name=written.get("rollout.batch_size", "--rollout_batch_size"))
    episodes = whole(given.get("train.num_episodes", 1), name="--num_episodes")
    if "data.max_samples" in given:
        samples = whole(given["data.max_samples"], name=written["data.max_samples"])
        settings["data.max_samples"] = samples
        if "eval.dataset" in given:  # which the option cuts there, too
            settings["eval.max_samples"] = samples
        settings["train.max_steps"] = max(1, math.ceil(episodes * samples / batch))
        conversion.differs(
            written["data.max_samples"],
            f"train.max_steps {settings['train.max_steps']} is {episodes} x {samples} prompts / {batch}, if the file has as many",
        )
    else:
        conversion.differs("--num_episodes", "train.max_steps is not known without the number of prompts: 400; set it")
        settings["train.max_steps"] = 400
    ratio = number(given.get("actor.lr_warmup_ratio", 0.03), name="--lr_warmup_ratio")
    settings["actor.lr_warmup_steps"] = round(ratio * settings["train.max_steps"])
    scheduler = str(given.get("actor.lr_scheduler", "cosine_with_min_lr"))
    if scheduler == "constant":  # which has no warm-up
        scheduler, settings["actor.lr_warmup_steps"] = "constant_with_warmup", 0
    if scheduler not in ("constant_with_warmup", "linear", "cosine"):
        conversion.differs(
            written.get("actor.lr_scheduler", "--actor.lr_scheduler"),
            f"{scheduler} is taken as cosine, which falls to 0",
        )
        scheduler = "cosine"
    settings["actor.lr_scheduler"] = scheduler
    return names


def _asynchrony(given: Mapping[str, Any], conversion: Conversion) -> set[str]:
    names = {
        "train.async_enable",
        "train.async_queue_size",
        "rollout.vllm_generate_batch_size",
        "train.partial_rollout_enable",
    }
    if is_true(given.get("train.async_enable", False)):
        queue = whole(given.get("train.async_queue_size", 1), name="--async_queue_size")
        conversion.settings["async.max_staleness"] = queue
        conversion.differs(
            "--async_train", f"async.max_staleness {queue}: no sample is older, where a queue of {queue} bounds batches"
        )
    else:
        conversion.settings["async.max_staleness"] = 0
        conversion.differs(
            "synchronous training",
            "async.max_staleness 0; 1 lets generation and training overlap, and is corrected with --algo.advantage.is_correction tis",
        )
    conversion.settings["train.partial_rollout_enable"] = is_true(given.get("train.partial_rollout_enable", False))
    return names


def _placement(given: Mapping[str, Any], written: Mapping[str, str], conversion: Conversion) -> set[str]:
    def count(name: str, default: int) -> int:
        return whole(given.get(name) or default, name=written.get(name, name))

    nodes, per_node = count("actor.num_nodes", 1), count("actor.num_gpus_per_node", 8)
    conversion.settings |= {"actor.num_nodes": nodes, "actor.num_gpus_per_node": per_node}
    if is_true(given.get("train.colocate_all", False)):
        parallel = count("vllm.tensor_parallel_size", 1)
        place(conversion, divided(nodes, per_node, tensor_parallel=parallel), name=written["train.colocate_all"])
        shared = conversion.settings.get("train.colocate_all", False)
        names = {"train.colocate_all", "actor.num_nodes", "actor.num_gpus_per_node", "vllm.num_engines"}
        return names | ({"vllm.tensor_parallel_size", "vllm.gpu_memory_utilization"} if shared else set())
    return set()


def _correction(given: Mapping[str, Any], written: Mapping[str, str], conversion: Conversion) -> set[str]:
    """The flags of 0.8 to 0.10: a switch, a threshold, a type."""
    names = {"enable_vllm_is_correction", "vllm_is_truncated_threshold", "vllm_is_correction_type", "use_icepop"}
    if is_true(given.get("enable_vllm_is_correction", False)):
        kind = "icepop" if is_true(given.get("use_icepop", False)) else str(given.get("vllm_is_correction_type", "tis"))
        level, mode = {"icepop": ("token", "mask"), "seq-mask-tis": ("seq", "mask")}.get(kind, ("token", "clip"))
        conversion.settings |= {"algo.advantage.is_correction_level": level, "algo.advantage.is_correction_mode": mode}
        default = (0.0, 2.0) if mode == "clip" else (0.5, 5.0)
        bounds = given.get("vllm_is_truncated_threshold", list(default))
        conversion.settings["algo.advantage.is_correction_threshold"] = (
            bounds if isinstance(bounds, list) else [0.0, bounds]
        )
    return names


def _agree(conversion: Conversion, given: Mapping[str, Any]) -> None:
    """Put right what goes together there and not here, with a remark."""
    settings = conversion.settings
    if settings.get("actor.policy_loss_type") == "gspo" and settings["actor.loss_agg_mode"] == "token-mean":
        settings["actor.loss_agg_mode"] = "seq-mean-token-mean"
    if settings["algo.advantage.estimator"] != "gae":
        for name in ("critic.model_name_or_path", "algo.advantage.lambd"):
            settings.pop(name, None)
    if (
        settings["algo.advantage.estimator"] not in ("gae", "reinforce")
        and settings.get("algo.advantage.gamma", 1) != 1
    ):
        settings["algo.advantage.gamma"] = 1.0
    if settings["algo.advantage.is_correction_level"] == "off":
        settings.pop("algo.advantage.is_correction_gating", None)
    if settings["algo.dynamic_filtering_enable"] is False:
        settings.pop("algo.dynamic_filtering_range", None)
    if (length := settings.get("reward.overlong_buffer_len")) is not None:
        settings["reward.overlong_buffer_len"] = whole(length, name="--overlong_buffer_len")
    if settings.get("ds.attn_implementation") == "eager":
        settings["ds.attn_implementation"] = "sdpa"
    if settings["data.label_key"] is None and "reward.remote_url" not in settings:
        settings["data.label_key"] = "label"
    if not settings.get("train.enable_ema"):
        settings.pop("train.ema_beta", None)
    if not given.get("actor.entropy_coef"):
        settings.pop("actor.entropy_coef", None)
