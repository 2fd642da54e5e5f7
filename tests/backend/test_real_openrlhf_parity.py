"""What is named as in OpenRLHF means the same: its installed functions and ours on the same random inputs."""

from __future__ import annotations

import ast
import importlib.util
import itertools
from pathlib import Path
from types import SimpleNamespace as Namespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dapo_openrlhf.algorithm.advantage import batch_credits
from dapo_openrlhf.algorithm.choices import ESTIMATORS, EstimatorName
from dapo_openrlhf.algorithm.kl import kl_estimate, unbiased_kl
from dapo_openrlhf.algorithm.loss import aggregate, value_loss
from dapo_openrlhf.algorithm.overlong import soft_overlong_punishment
from dapo_openrlhf.backend.openrlhf_bases import import_openrlhf_lightly
from dapo_openrlhf.backend.trainer.collate import Tensors
from dapo_openrlhf.backend.trainer.per_sample import Known, token_advantages
from dapo_openrlhf.backend.trainer.policy_loss import policy_loss
from dapo_openrlhf.backend.trainer.step_settings import AdvantageSettings, LossSettings
from dapo_openrlhf.config.foreign import NOT_HERE
from dapo_openrlhf.config.not_there import FEWER, HOW, NOT_THERE
from dapo_openrlhf.config.settings import settings_of
from dapo_openrlhf.pipeline.batch import Sample, weighted
from dapo_openrlhf.pipeline.dynamic_sampling import GroupFilter
from dapo_openrlhf.pipeline.rollout import LengthShaping
from dapo_openrlhf.types import PolicyVersion, Prompt, Rollout, RolloutGroup, Score

pytestmark = pytest.mark.real

DOCS = Path(__file__).parents[2] / "docs" / "openrlhf.md"
PACKAGE = Path(importlib.util.find_spec("openrlhf").submodule_search_locations[0])  # type: ignore[union-attr, index]
LENGTHS = (9, 5, 1, 7, 3, 9)
"""Tokens of six responses; the first three belong to one prompt."""
GROUP = 3
B, T = len(LENGTHS), max(LENGTHS)
PRESENT = (torch.arange(T) < torch.tensor(LENGTHS)[:, None]).float()


@pytest.fixture(scope="module", autouse=True)
def openrlhf() -> None:
    import_openrlhf_lightly()


def samples(credits: list[float] | None = None) -> list[Sample]:
    return [
        Sample(
            group=index // GROUP, index=index % GROUP, prompt_length=2, length=length,
            advantage=0.0 if credits is None else credits[index], trained=True,
        )
        for index, length in enumerate(LENGTHS)
    ]  # fmt: skip


def by_sample(rows: Tensor) -> dict[tuple[int, int], Tensor]:
    return {(i // GROUP, i % GROUP): row[:length] for i, (row, length) in enumerate(zip(rows, LENGTHS, strict=True))}


def drawn(seed: int, spread: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs of the policy, of the old one, of the rollout, of the reference; beyond a response they are garbage."""
    chance = torch.Generator().manual_seed(seed)

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(B, T, generator=chance, dtype=torch.float64)

    new = -2 * torch.rand(B, T, generator=chance, dtype=torch.float64)
    old = new + noise(0.4 * spread)
    return new, old, old + noise(0.5 * spread), new + noise(0.5 * spread)


# ---------------------------------------------------------------- losses

CORRECTIONS = [
    ("off", "mask", "ratio"), ("off", "clip", "ratio"), ("token", "clip", "ratio"), ("token", "mask", "ratio"),
    ("seq", "mask", "ratio"), ("token", "mask", "tv"), ("seq", "mask", "tv"), ("token", "mask", "binary_kl"),
    ("seq", "mask", "binary_kl"),
]  # fmt: skip
LOSSES = [
    case
    for case in itertools.product(
        ["ppo", "gspo"], CORRECTIONS, [True, False], [None, 3.0], [0.0, 0.3], ["k1", "k2", "k3"], [1.0, 4.0]
    )
    if not (case[0] == "gspo" and case[2])  # there gspo is a mean over responses whatever is asked for; here refused
    and (case[4] > 0 or case[5] == "k1")
    and (case[1][2] == "ratio" or (case[0] == "ppo" and case[3] is None and case[4] == 0))
]


@pytest.mark.parametrize(("kind", "correction", "token_mean", "dual_clip", "kl_coef", "estimator", "spread"), LOSSES)
def test_policy_loss_and_its_gradient(
    kind: Any, correction: Any, token_mean: bool, dual_clip: float | None, kl_coef: float, estimator: Any, spread: float
) -> None:
    """With ``algo.kl.use_loss``: the KL's term as ``PPOActor.training_step`` adds it."""
    from openrlhf.models.loss import PolicyLoss, aggregate_loss
    from openrlhf.models.utils import compute_approx_kl

    level, mode, gating = correction
    new, old, rollout, reference = drawn(7, spread)
    advantages = torch.randn(B, 1, generator=torch.Generator().manual_seed(8), dtype=torch.float64).expand(B, T)
    threshold = (0.7, 1.4) if gating == "ratio" else (0.0, 0.05)
    totals = {"batch_num_tokens": float(sum(LENGTHS)), "global_batch_size": float(B)}

    theirs_in = new.clone().requires_grad_()
    theirs = PolicyLoss(
        clip_eps_low=0.2, clip_eps_high=0.28, dual_clip=dual_clip, token_level_loss=token_mean, policy_loss_type=kind,
        is_correction_level=level, is_correction_mode=mode, is_correction_threshold=threshold, is_correction_gating=gating,
    )(theirs_in, old, advantages, action_mask=PRESENT, rollout_log_probs=rollout, **totals)[0]  # fmt: skip
    if kl_coef:
        kl = compute_approx_kl(theirs_in, reference, log_probs_old=old, kl_estimator=estimator)
        theirs = theirs + kl_coef * aggregate_loss(kl, PRESENT, **totals)
    theirs.backward()

    settings = LossSettings(
        eps_clip_low_high=(0.2, 0.28), dual_clip=dual_clip, policy_loss_type=kind, kl_coef=kl_coef,
        kl_estimator=estimator, old_logprobs="recompute", is_correction_level=level, is_correction_mode=mode,
        is_correction_threshold=threshold, is_correction_gating=gating, temperature=1.0,
    )  # fmt: skip
    own = weighted(samples(), "token-mean" if token_mean else "seq-mean-token-mean", T)
    nothing = torch.zeros(0)
    batch = Tensors(
        samples=tuple(own), lengths=LENGTHS, input_ids=nothing, position_ids=nothing, positions=nothing, targets=nothing,
        present=PRESENT.bool(), mask=PRESENT, advantages=advantages[:, :1],
        weights=torch.tensor([[sample.weight] for sample in own], dtype=torch.float64), rollout_logprobs=rollout, fresh=torch.zeros(B, 1), kept=None,
        versions=(),
    )  # fmt: skip
    known = Known(old_logprobs=by_sample(old.float()), ref_logprobs=by_sample(reference.float()) if kl_coef else {})
    ours_in = new.clone().requires_grad_()
    ours, _ = policy_loss(batch, ours_in, torch.zeros(B, T), known, settings, total_tokens=sum(LENGTHS), first=False)
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5, abs=1e-6)
    assert ours_in.grad is not None and theirs_in.grad is not None
    torch.testing.assert_close(ours_in.grad, theirs_in.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("level", ["seq"])
def test_what_it_refuses_is_refused(level: str) -> None:
    from openrlhf.models.loss import PolicyLoss

    with pytest.raises(ValueError, match="clip requires"):
        PolicyLoss(is_correction_level=level, is_correction_mode="clip")


@pytest.mark.parametrize("clip", [None, 0.5])
def test_value_loss(clip: float | None) -> None:
    from openrlhf.models.loss import ValueLoss

    values, old, returns, _ = drawn(3, 4.0)
    theirs = ValueLoss(clip_eps=clip)(values, old, returns, action_mask=PRESENT, batch_num_tokens=float(sum(LENGTHS)))
    share = torch.tensor(1 / sum(LENGTHS), dtype=torch.float64)
    ours = aggregate(value_loss(values, old, returns, clip=clip), PRESENT, share)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-9)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
def test_the_unbiased_gradient_of_the_kl(estimator: Any, spread: float) -> None:
    from openrlhf.models.utils import compute_approx_kl

    new, old, _, reference = (x.float() for x in drawn(5, spread))
    theirs_in, ours_in = new.clone().requires_grad_(), new.clone().requires_grad_()
    theirs = compute_approx_kl(theirs_in, reference, old, kl_estimator=estimator, unbiased_gradient=True)
    ours = unbiased_kl(ours_in, reference, old, estimator=estimator)
    torch.testing.assert_close(ours, theirs)
    gradients = torch.autograd.grad(ours.sum(), ours_in), torch.autograd.grad(theirs.sum(), theirs_in)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
def test_kl_estimators_and_their_gradients(estimator: Any, spread: float) -> None:
    from openrlhf.models.utils import compute_approx_kl

    new, _, _, reference = (x.float() for x in drawn(5, spread))
    theirs_in, ours_in = new.clone().requires_grad_(), new.clone().requires_grad_()
    theirs = compute_approx_kl(theirs_in, reference, kl_estimator=estimator)
    ours = kl_estimate(ours_in, reference, estimator=estimator)
    torch.testing.assert_close(ours, theirs)
    gradients = torch.autograd.grad(ours.sum(), ours_in), torch.autograd.grad(theirs.sum(), theirs_in)
    torch.testing.assert_close(*gradients)


# ---------------------------------------------------------------- advantages

ADVANTAGES = [
    case
    for case in itertools.product(ESTIMATORS, [0.0, 0.1], [1.0, 0.9], [1.0, 0.95], [False, True])
    if (case[2] == 1 or ESTIMATORS[case[0]].discounted)
    and (case[3] == 1 or ESTIMATORS[case[0]].critic)
    and (not case[4] or ESTIMATORS[case[0]].whitened)
]
"""Estimator, KL in the reward, gamma, lambda, no_std_norm: what the configuration allows."""


@pytest.mark.parametrize("clip_range", [(-10.0, 10.0), (-0.5, 0.4)])
@pytest.mark.parametrize("rewards", [[1.0, -1.0, -1.0, 0.5, 1.0, -1.0], [1.0, 1.0, 0.0, 0.3, 0.25, -9.0]])
@pytest.mark.parametrize(("name", "kl_coef", "gamma", "lambd", "no_std_norm"), ADVANTAGES)
def test_advantages_and_returns(
    name: EstimatorName,
    kl_coef: float,
    gamma: float,
    lambd: float,
    no_std_norm: bool,
    rewards: list[float],
    clip_range: tuple[float, float],
) -> None:
    from openrlhf.models.utils import compute_approx_kl
    from openrlhf.trainer.ppo_utils.experience import Experience
    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

    logprobs, values, _, reference = (x.float() for x in drawn(11, 1.0))
    kl = compute_approx_kl(logprobs, reference, kl_estimator="k1") * PRESENT
    args = Namespace(
        reward=Namespace(overlong_buffer_len=None, stop_properly_penalty_coef=None, clip_range=clip_range),
        rollout=Namespace(n_samples_per_prompt=GROUP),
        algo=Namespace(advantage=Namespace(estimator=name, gamma=gamma, lambd=lambd, no_std_norm=no_std_norm)),
    )
    maker = RemoteExperienceMaker.__new__(RemoteExperienceMaker)
    maker.strategy, maker.args, maker.advantage_estimator = Namespace(args=args), args, name
    maker.kl_ctl = Namespace(value=kl_coef)
    experience = Experience(
        action_mask=PRESENT.bool(), rewards=torch.tensor(rewards), kl=kl.clone(), values=values.clone(), info={}
    )
    experience.index = list(range(B))
    (experience,) = maker.compute_advantages_and_returns([experience])

    groups = [rewards[start : start + GROUP] for start in range(0, B, GROUP)]
    credits = [c for group in batch_credits(groups, estimator=name, clip_range=clip_range) for c in group]
    settings = AdvantageSettings(
        critic=ESTIMATORS[name].critic, whitened=ESTIMATORS[name].whitened, gamma=gamma, lambd=lambd,
        no_std_norm=no_std_norm, kl_coef=kl_coef, kl_estimator="k1",
    )  # fmt: skip
    advantages, returns = token_advantages(
        samples(credits), settings,
        old_logprobs=by_sample(logprobs), ref_logprobs=by_sample(reference), values=by_sample(values),
        sum_over_ranks=lambda tensor: tensor,
    )  # fmt: skip
    for key, expected in by_sample(experience.advantages).items():
        torch.testing.assert_close(advantages[key], expected, rtol=1e-4, atol=1e-5)
    if ESTIMATORS[name].critic:
        for key, expected in by_sample(experience.returns).items():
            torch.testing.assert_close(returns[key], expected, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- rewards and groups


@pytest.mark.parametrize(("longest", "buffer", "factor"), [(100, 20, 1.0), (100, 100, 0.5), (7, 3, 2.0), (50, 1, 1.0)])
def test_overlong_penalty(longest: int, buffer: int, factor: float) -> None:
    from openrlhf.trainer.ppo_utils.length_penalty import apply_overlong_penalty

    lengths = torch.arange(1, longest + 3)
    experience = Namespace(response_length=lengths, rewards=torch.zeros(len(lengths), dtype=torch.float64))
    apply_overlong_penalty([experience], longest, buffer, factor)
    ours = [
        soft_overlong_punishment(int(length), max_length=longest, buffer_length=buffer, factor=factor)
        for length in lengths
    ]
    assert ours == pytest.approx(experience.rewards.tolist(), abs=1e-12)


@pytest.mark.parametrize("coefficient", [None, 1.0, 0.5, 0.0, -0.5, -2.0])
def test_stop_properly_penalty(coefficient: float | None) -> None:
    """After the overlong penalty, as OpenRLHF applies both."""
    from openrlhf.trainer.ppo_utils.length_penalty import apply_length_penalties

    lengths, truncated = [10, 95, 100, 100], [False, False, True, True]
    rewards = [1.0, -1.0, 1.0, -1.0]
    experience = Namespace(
        response_length=torch.tensor(lengths), rewards=torch.tensor(rewards, dtype=torch.float64),
        truncated=torch.tensor(truncated), info={},
    )  # fmt: skip
    reward = Namespace(overlong_buffer_len=20, overlong_penalty_factor=1.0, stop_properly_penalty_coef=coefficient)
    apply_length_penalties([experience], Namespace(reward=reward, rollout=Namespace(max_new_tokens=100)))
    shaping = LengthShaping(max_length=100, buffer_length=20, factor=1.0, truncated=coefficient)
    ours = [
        shaping.shape(Score(reward=value, correct=value > 0), length, truncated=cut, cut=False).reward
        for value, length, cut in zip(rewards, lengths, truncated, strict=True)
    ]
    assert ours == pytest.approx(experience.rewards.tolist(), abs=1e-12)


def test_entropy_and_its_gradient() -> None:
    """Of the bonus of ``actor.entropy_coef``."""
    from openrlhf.models.utils import compute_entropy

    from dapo_openrlhf.backend.trainer.logprobs import _chunk

    logits = torch.randn(7, 13, generator=torch.Generator().manual_seed(2))
    theirs_in, ours_in = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    theirs = compute_entropy(theirs_in / 0.8)
    _, ours = _chunk(
        lambda x: x, lambda x: x, ours_in, torch.zeros(7).long(), None, temperature=0.8, entropy_gradient=True
    )
    torch.testing.assert_close(ours, theirs)
    gradients = torch.autograd.grad(ours.sum(), ours_in), torch.autograd.grad(theirs.sum(), theirs_in)
    torch.testing.assert_close(*gradients)
    _, without = _chunk(
        lambda x: x, lambda x: x, ours_in, torch.zeros(7).long(), None, temperature=0.8, entropy_gradient=False
    )
    assert not without.requires_grad and torch.equal(without, ours.detach())


FILTERED = [[0, 0, 0], [1, 1, 1], [0, 1, 0], [0.3, 0.3, 0.3], [0.1, 0.9, 1.0], [0.5, 0.5, 0.5], [-1, 1, -1], [-1, 1, 1]]


@pytest.mark.parametrize("score_range", [(0.0, 1.0), (0.2, 0.8), (0.5, 0.9)])
@pytest.mark.parametrize("scores", FILTERED)
def test_dynamic_filtering(
    scores: list[float], score_range: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one prompt, through OpenRLHF's own loop with an engine that answers at once."""
    from openrlhf.trainer.ppo_utils import samples_generator

    responses = [Namespace(scores=torch.tensor([score], dtype=torch.float64)) for score in scores]
    prompts = [(["a prompt"], ["label"], [None], False)]
    generator = samples_generator.SamplesGenerator.__new__(samples_generator.SamplesGenerator)
    generator.args = Namespace(algo=Namespace(dynamic_filtering_range=score_range))
    monkeypatch.setattr(generator, "_dispatch_prompts_to_vllm", lambda *_, **__: ["group"], raising=False)
    monkeypatch.setattr(generator, "_process_response_into_experience", lambda response, **_: response, raising=False)
    monkeypatch.setattr(
        samples_generator, "_collect_prompt_batch", lambda *_: prompts.pop() if prompts else ([], [], [], True)
    )
    monkeypatch.setattr(samples_generator, "ray", Namespace(wait=lambda refs, **_: (refs, []), get=lambda _: responses))
    accepted, *_ = generator._generate_vllm(None, 1, True)

    group = RolloutGroup(
        id=0, prompt=Prompt(id=0, text="a prompt", label="label"), prompt_length=1,
        rollouts=tuple(
            Rollout(length=1, truncated=False, cut=False, correct=score >= 1, reward=score, score=score)
            for score in scores
        ),
        oldest_version=PolicyVersion(0), newest_version=PolicyVersion(0), engine=0, tokens=None,
    )  # fmt: skip
    assert GroupFilter(enabled=True, score_range=score_range).decide(group).keep == bool(accepted)


# ---------------------------------------------------------------- options


def their_options() -> dict[str, Any]:
    """Name and default of every option in ``cli/train_ppo_ray.py``, whose parser can only be had by running it."""
    options: dict[str, Any] = {}
    tree = ast.parse((PACKAGE / "cli" / "train_ppo_ray.py").read_text(encoding="utf-8"))
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For)]
    inside = {id(call) for loop in loops for call in ast.walk(loop)}
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "parser.add_argument"):
            continue
        for prefix in ("actor", "critic") if id(node) in inside else ("",):
            name = eval(ast.unparse(node.args[0]), {"prefix": prefix})
            words = {word.arg: word.value for word in node.keywords}
            switch = "action" in words and ast.unparse(words["action"]) == "'store_true'"
            default = words.get("default", ast.Constant(False if switch else None))
            if "datetime" not in ast.unparse(default):
                options[name.removeprefix("--")] = eval(ast.unparse(default), {"prefix": prefix, "float": float})
    return options


def documented() -> dict[str, tuple[str, str]]:
    """Rows of the table of shared options: our default and theirs, as they are written there."""
    rows = {}
    for line in DOCS.read_text(encoding="utf-8").split("## Options not here")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 4:
            rows[cells[0].strip("`")] = (cells[1].strip("`"), cells[2].strip("`"))
    return rows


def written(value: Any) -> str:
    match value:
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case list() | tuple():
            return " ".join(map(written, value))
        case float():
            return f"{value:g}"
    return str(value) or '""'


def test_every_shared_option_is_documented_with_both_defaults() -> None:
    theirs = their_options()
    assert len(theirs) > 130, "the parser is written otherwise now"
    ours = {name: "must be set" if field.is_required() else written(field.default) for name, field in settings_of()}
    shared = {name: (ours[name], written(theirs[name])) for name in ours if name in theirs}
    assert documented() == shared, "the table of docs/openrlhf.md"


def test_every_option_that_is_not_here_is_listed() -> None:
    missing = DOCS.read_text(encoding="utf-8").split("## Options not here")[1]
    ours = {name for name, _ in settings_of()}
    unlisted = [name for name in their_options() if name not in ours and f"`{name}`" not in missing]
    assert unlisted == []


def test_every_option_is_a_setting_or_is_refused_with_the_way_to_get_there() -> None:
    theirs, ours = set(their_options()), {name for name, _ in settings_of()}
    theirs.add("logger.wandb.run_name")  # whose default is a date
    assert theirs - ours == set(NOT_HERE)
    assert set(NOT_HERE) & ours == set(), "what is a setting is not refused"


def test_every_setting_is_an_option_or_is_known_to_be_none() -> None:
    theirs, ours = set(their_options()), {name for name, _ in settings_of()}
    theirs.add("logger.wandb.run_name")
    environment = "train.agent_func_path"  # an option whose rollouts are counted otherwise
    assert ours - theirs == {*NOT_THERE, *HOW} - {environment}
    assert set(FEWER) | {environment} <= theirs


def test_scheduler_names_are_transformers() -> None:
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    from dapo_openrlhf.config.training import ActorSection

    names = ActorSection.model_fields["lr_scheduler"].annotation.__args__  # type: ignore[union-attr]
    assert set(names) <= {scheduler.value for scheduler in TYPE_TO_SCHEDULER_FUNCTION}
