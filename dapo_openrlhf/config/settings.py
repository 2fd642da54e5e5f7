"""Every setting, its unit and its range (pydantic).

A setting that OpenRLHF has keeps OpenRLHF's dotted name. :mod:`~dapo_openrlhf.config.rules` has what settings must agree
with, :mod:`~dapo_openrlhf.config.loading` reads files and command lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field
from pydantic.fields import FieldInfo

from dapo_openrlhf.config.algo import AlgoSection
from dapo_openrlhf.config.choices import DeviceKind, OnBadRow
from dapo_openrlhf.config.environment import EnvironmentSection
from dapo_openrlhf.config.evaluation import EvalSection, EvalSet, eval_sets
from dapo_openrlhf.config.generation import AsyncSection, RolloutSection, VllmSection
from dapo_openrlhf.config.presets import PAPER, PresetName
from dapo_openrlhf.config.reports import LoggerSection, ReportSection
from dapo_openrlhf.config.reward import RewardSection
from dapo_openrlhf.config.section import PositiveFloat, PositiveInt, Section, listed
from dapo_openrlhf.config.training import ActorSection, CriticSection, DsSection, TrainSection
from dapo_openrlhf.config.transports import TransportName, automatic
from dapo_openrlhf.config.yaml_text import mapping_of


class RunSection(Section):
    name: str = "dapo"
    """The run's folder is ``<run.dir>/<run.name>``; a number is appended when it exists."""
    dir: str = "runs"
    """Parent folder of all runs, relative to the current folder."""


class DataSection(Section):
    prompt_dataset: Annotated[tuple[str, ...], BeforeValidator(listed), Field(strict=False, min_length=1)]
    """Prompts to train on: one or several .jsonl, .json, .csv or .parquet files, folders saved by datasets, or sets of the
    hub as hf:OWNER/NAME[@SUBSET][:SPLIT]. Several are read as one set, one after the other, unless ``prompt_probs`` mixes
    them."""
    prompt_probs: Annotated[tuple[PositiveFloat, ...], BeforeValidator(listed), Field(strict=False)] | None = None
    """The share of the prompts drawn that each of several files gets, together 1, whatever the files' sizes: a small one
    comes again more often."""
    prompt_split: str | None = None
    """The split of sets whose name gives none: of sets of the hub, and of folders with several splits, as OpenRLHF takes it.
    null takes ``train`` of the hub's, and no folder with several."""
    max_samples: PositiveInt | None = None
    """Number of rows to take from the beginning of each file of prompts; null takes all."""
    curriculum: bool = False
    """Draw prompts with right and wrong responses more often, by the pass rates that the run has seen, and rest those
    that are solved or hopeless; each still comes within four times as many draws as there are prompts."""
    input_key: str = "input"
    """Column with the prompt: text, or a chat list when ``apply_chat_template`` is set. A dotted path reaches into nested
    columns; so does ``label_key``'s."""
    label_key: str | None = "label"
    """Column with the gold answer: ``reward_model.ground_truth`` in DAPO-Math-17k; null for rewards that need none.
    Rows for an environment may lack the column; their label is None then."""
    input_template: str | None = None
    """Text put around each prompt, with ``{}`` where it goes; not with ``apply_chat_template``."""
    apply_chat_template: bool = False
    """Render prompts with the tokenizer's chat template; a prompt that is text becomes one turn of the user."""
    chat_template_kwargs: Annotated[dict[str, Any], BeforeValidator(mapping_of)] = {}  # noqa: RUF012 - pydantic copies it
    """Further arguments of the chat template, such as ``enable_thinking: false``."""
    system_prompt: str | None = None
    """First turn of every chat that has no system turn of its own."""
    on_bad_row: OnBadRow = "refuse"
    """What happens when rows are not prompts, or leave no room for a response: ``refuse`` refuses the run, ``skip``
    leaves them out; both name them."""
    max_len: PositiveInt = PAPER["data.max_len"]
    """Longest prompt and response together, in tokens; with an environment the longest context."""


class CkptSection(Section):
    save_steps: int = -1
    """Save a checkpoint to resume from every this many rollout steps and at the end; -1 saves the final model only."""
    max_num: PositiveInt = 3
    """Number of checkpoints to resume from that are kept, the newest ones."""
    best_metric_key: str = ""
    """Number of an evaluation by which the best checkpoint is known, which is kept besides the newest: ``pass@4`` for
    example, or any other that an evaluation of the run gives, of several sets the first one's, or ``NAME/pass@4``; empty
    takes the accuracy, ``none`` keeps no best one."""


class Config(Section):
    """The settings of a whole run; :func:`dapo_openrlhf.config.loading.build_config` checks that they go together."""

    preset: PresetName = "dapo"
    """Algorithm whose settings apply where the run does not set its own."""
    device: DeviceKind = "cuda"
    """Kind of machine that trainer and engines run on."""
    run: RunSection = RunSection()
    actor: ActorSection
    critic: CriticSection = CriticSection()
    ds: DsSection = DsSection()
    vllm: VllmSection = VllmSection()
    rollout: RolloutSection = RolloutSection()
    train: TrainSection = TrainSection()
    async_: Annotated[AsyncSection, Field(alias="async")] = AsyncSection()
    algo: AlgoSection = AlgoSection()
    reward: RewardSection = RewardSection()
    environment: EnvironmentSection = EnvironmentSection()
    data: DataSection
    eval: EvalSection = EvalSection()
    ckpt: CkptSection = CkptSection()
    report: ReportSection = ReportSection()
    logger: LoggerSection = LoggerSection()

    @property
    def trainer_ranks(self) -> int:
        """Number of data-parallel trainer processes."""
        return self.actor.num_nodes * self.actor.num_gpus_per_node

    @property
    def devices(self) -> int:
        """Number of GPUs, or of processes that hold a model on a CPU: engines times their tensor-parallel size, and
        trainer ranks."""
        if self.train.colocate_all:
            return self.trainer_ranks
        return self.vllm.num_engines * self.vllm.tensor_parallel_size + self.trainer_ranks

    @property
    def weight_transfer(self) -> TransportName:
        """``vllm.sync_backend`` with ``auto`` resolved."""
        if self.vllm.sync_backend != "auto":
            return self.vllm.sync_backend
        return automatic(device=self.device, shared=self.train.colocate_all)

    @property
    def max_rollout_kl(self) -> float:
        """``train.max_rollout_kl`` with null resolved: a thousand times what is healthy in fp32, ten times in bf16."""
        return self.train.max_rollout_kl or (1e-3 if self.ds.param_dtype == "fp32" else 0.1)

    @property
    def eval_sets(self) -> tuple[EvalSet, ...]:
        """The sets of held-out problems, in order, each with all that holds for it; the first one decides."""
        data = self.data
        inherited = {"input_key": data.input_key, "label_key": data.label_key}
        return tuple(eval_sets(self.eval, inherited | {"max_new_tokens": self.rollout.max_new_tokens}))

    @property
    def needs_answers(self) -> bool:
        """Whether rows must have an answer that a response can be compared with."""
        return self.train.agent_func_path is None and any(origin.needs_answer for origin in self.reward.origins)

    @property
    def updates_per_step(self) -> int:
        """U: number of gradient updates in one rollout step, over all epochs."""
        return (
            self.rollout.batch_size * self.rollout.n_samples_per_prompt // self.train.batch_size * self.train.max_epochs
        )

    @property
    def gradient_steps(self) -> int:
        """Number of gradient updates in the run. Every batch is full whatever is filtered, so it does not depend on how
        many groups are generated."""
        return self.train.max_steps * self.updates_per_step

    @property
    def lr_warmup_ratio(self) -> float:
        """Warm-up as a share of the gradient steps, which is how OpenRLHF takes it.

        OpenRLHF rounds ratio x steps up; half an update less makes it land on ``actor.lr_warmup_steps`` rollout steps.
        """
        return max(0.0, self.actor.lr_warmup_steps * self.updates_per_step - 0.5) / self.gradient_steps


def settings_of(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every setting with its dotted name."""
    for field_name, field in section.model_fields.items():
        name = prefix + (field.alias or field_name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from settings_of(field.annotation, name + ".")
        else:
            yield name, field


def setting_names() -> dict[str, str]:
    """The description of every setting by its dotted name."""
    return {name: field.description or "" for name, field in settings_of()}
