"""Whether the machines have what trainer and engines ask for, and whether it is free."""

from __future__ import annotations

from collections.abc import Iterator

from dapo_openrlhf.backend.device import Device
from dapo_openrlhf.backend.run.layout import Layout, check_fit
from dapo_openrlhf.backend.run.needs import check_devices
from dapo_openrlhf.check.finding import Finding, passed, warned
from dapo_openrlhf.check.machines import Machines
from dapo_openrlhf.check.subject import Subject
from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.config.settings import Config


def check(subject: Subject) -> Iterator[Finding]:
    """Fail for what the machines do not have; warn about what they have and others hold."""
    config, machines = subject.config, subject.machines()
    device = Device.of(config.device, processes=config.devices)
    total = sum(machine.cpus if device.kind == "cpu" else machine.gpus for machine in machines.each)
    check_devices(config, device, total, machines.where)
    if device.kind == "cuda":
        check_fit(config, Layout.of(config), [machine.gpus for machine in machines.each if machine.gpus])
    yield from _free(config, machines)
    shared = ", shared by engines and trainer" if config.train.colocate_all else ""
    kind = "GPUs" if device.kind == "cuda" else "processes"
    yield passed(
        f"{config.trainer_ranks} trainer rank(s) and {config.vllm.num_engines} engine(s) of "
        f"{config.vllm.tensor_parallel_size} on {config.devices} {kind}{shared}; {machines.where} has {total:g} "
        f"{'GPUs' if device.kind == 'cuda' else 'CPU cores'}"
    )


def _free(config: Config, machines: Machines) -> Iterator[Finding]:
    """Warn where it would fit, but not into what is free now."""
    waits = f"end what holds them (ray status shows whose); a run waits {config.async_.start_timeout:g} s for them"
    if config.device == "cpu":
        free = sum(machine.free_cpus for machine in machines.each)
        actors = config.vllm.num_engines + config.trainer_ranks
        if not machines.here and free < actors:
            yield warned(f"{machines.where} has {free:g} CPUs free, and {actors} actors need one each", waits)
        return
    try:
        check_fit(config, Layout.of(config), [machine.free_gpus for machine in machines.each if machine.free_gpus])
    except ConfigError:
        free = sum(machine.free_gpus for machine in machines.each)
        yield warned(f"{machines.where} has {free:g} GPUs free now, where {config.devices} are needed", waits)
