"""What a job with an uploaded working directory can see of the files that its configuration names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dapo_openrlhf.backend.run.jobs.upload import NOT_UPLOADED, Upload
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.reward_origin import PythonFile
from dapo_openrlhf.config.settings import Config
from dapo_openrlhf.dataset.hub_sets import PREFIX as ON_HUB


def refuse_unseen(config: Config, resume: str | None, upload: Upload | None) -> None:
    """Refuse relative paths that lead nowhere in the job.

    ``upload``: what goes with it; None where that is an archive elsewhere, whose files are not known. Absolute paths
    are for the cluster's machines, and are looked at there. Raises ``ConfigError`` with a line for each.
    """
    problems = [*_folders(config, resume), *(() if upload is None else _files(config, upload))]
    if problems:
        raise ConfigError("\n".join(["the job would not find what it needs:", *(f"  {line}" for line in problems)]))


def _folders(config: Config, resume: str | None) -> Iterator[str]:
    if resume is not None and resume != "auto" and not Path(resume).is_absolute():
        yield f"--resume: {resume} is relative; give the absolute path of the run on the cluster's machines"
    elif not Path(config.run.dir).is_absolute():
        yield (
            f"run.dir: {config.run.dir} is relative, and would lie in a folder that Ray deletes after the job; give an "
            "absolute path that the cluster's machines keep"
        )


def _files(config: Config, upload: Upload) -> Iterator[str]:
    named = [
        ("actor.model_name_or_path", config.actor.model_name_or_path),
        ("critic.model_name_or_path", config.critic.model_name_or_path),
        *(("eval.dataset", path) for _, path in config.eval.named),
        ("train.agent_func_path", config.train.agent_func_path),
    ]
    prompts = [(f"data.prompt_dataset[{i}]", file) for i, file in enumerate(config.data.prompt_dataset)]
    rewards = [
        (f"reward.remote_url[{i}]", o.path) for i, o in enumerate(config.reward.origins) if isinstance(o, PythonFile)
    ]
    for setting, path in [*named, *prompts, *rewards]:
        if (
            path is not None
            and not path.startswith(ON_HUB)
            and not Path(path).is_absolute()
            and (trouble := _unseen(path, setting, upload))
        ):
            yield f"{setting.partition('[')[0]}: {path} {trouble}"


def _unseen(path: str, setting: str, upload: Upload) -> str:
    """Why a relative path is not in the upload; empty where it is, or is a name on the hub."""
    parts = Path(path).parts
    if ".." in parts:
        return f"leads out of the working directory {upload.root}; give an absolute path on the cluster's machines"
    there = upload.root / path
    if not there.exists():
        if setting.endswith("model_name_or_path") and len(parts) <= 2 and not path.startswith("."):
            return ""  # on the Hugging Face hub
        return f"is not in the working directory {upload.root}; copy it there, or give an absolute path on the cluster's machines"
    wanted = Path(*parts)
    if any(file == wanted or file.is_relative_to(wanted) for file in upload.sizes):
        return ""
    return (
        f"is not uploaded ({', '.join(NOT_UPLOADED)} and what .gitignore names are left out); move it, or give an absolute "
        "path on the cluster's machines"
    )
