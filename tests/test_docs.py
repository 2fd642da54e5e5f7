"""The documentation is true: links lead somewhere, commands parse, settings exist, generated pages are up to date."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest

from dapo_openrlhf.cli.options import make_parser
from dapo_openrlhf.config.loading import parse_overrides
from dapo_openrlhf.config.settings import setting_names

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "data").glob("*.md")])
SETTINGS = setting_names()
SECTIONS = {name.partition(".")[0] for name in SETTINGS if "." in name}
FILES = {".py", ".yaml", ".md", ".jsonl", ".json", ".sh", ".png", ".txt", ".cfg", ".html"}

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SOURCE = re.compile(r"`((?:\w+/)+\w+\.py)`")
NAME = re.compile(r"`([a-z_]+(?:\.[a-z_]+)+)(?: [^`]*)?`")


def commands(text: str) -> list[str]:
    """What stands behind `dapo-openrlhf` in fenced blocks, line continuations joined, options in brackets left out."""
    found = []
    for block in FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.search(r"(?:^|[ /$])dapo-openrlhf ([a-z]+ .*)", line)
            if command and "[" not in command[1] and "|" not in command[1]:
                found.append(command[1].partition(" #")[0])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    targets = [target for target in LINK.findall(page.read_text()) if "://" not in target]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


PATH = re.compile(r"`((?:tests|scripts|dapo_openrlhf|configs|data|docs)/[\w./-]+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_exist(page: Path) -> None:
    assert [path for path in PATH.findall(page.read_text()) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_source_files_named_exist(page: Path) -> None:
    """From the checkout, or from the package as its folders are mostly named."""
    named = SOURCE.findall(page.read_text())
    assert not [name for name in named if not (ROOT / name).exists() and not (ROOT / "dapo_openrlhf" / name).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_named_exist(page: Path) -> None:
    if page.name == "openrlhf.md":  # it names OpenRLHF's, which tests/backend/test_real_openrlhf_parity.py compares
        return
    named = {name for name in NAME.findall(page.read_text()) if name.partition(".")[0] in SECTIONS}
    unknown = {name for name in named if name not in SETTINGS and Path(name).suffix not in FILES}
    assert not unknown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse(page: Path) -> None:
    for command in commands(page.read_text()):
        options, left_over = make_parser().parse_known_args(shlex.split(command))
        from_a_run = options.command == "plan" and options.config is None  # the run's folder is what is left over
        parse_overrides(left_over[from_a_run:])


def test_readme_has_commands_that_were_checked() -> None:
    assert "train --config my_run.yaml" in commands((ROOT / "README.md").read_text())


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 1600


def test_generated_pages_are_up_to_date() -> None:
    reference = runpy.run_path(str(ROOT / "scripts" / "write_reference.py"))
    for name, page in reference["PAGES"].items():
        assert (ROOT / "docs" / name).read_text() == page(), f"run scripts/write_reference.py: docs/{name}"


def test_every_setting_has_a_description() -> None:
    from dapo_openrlhf.config.settings import settings_of

    assert [name for name, field in settings_of() if not field.description] == []
