"""Scripts as people write them: the words of the command that trains, and nothing of the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dapo_openrlhf.__main__ import main
from dapo_openrlhf.convert.shell import commands

TRAIN = "python3 -m openrlhf.cli.train_ppo_ray"
BEGIN = ["python3", "-m", "openrlhf.cli.train_ppo_ray"]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("x --a ./out#1 --b 2 # the end", ["x", "--a", "./out#1", "--b", "2"]),
        ("x --a 1 `# said` --b 2", ["x", "--a", "1", "--b", "2"]),
        ('x --a "Q: {}\nA:" --b 2', ["x", "--a", "Q: {}\nA:", "--b", "2"]),
        (r"x --a $'Q: {}\nA:'", ["x", "--a", "Q: {}\nA:"]),
        (r'x "a \"b\" \$c"', ["x", 'a "b" $c']),
        ("x 'a $b'", ["x", "a $b"]),
        ("A='$B'\nB=1\nx $A", ["x", "$B"]),
        ('x --a "don\'t" --b 2', ["x", "--a", "don't", "--b", "2"]),
        ("A='0.2 0.28'\nx --clip $A", ["x", "--clip", "0.2", "0.28"]),
        ("A='0.2 0.28'\nx --clip \"$A\"", ["x", "--clip", "0.2 0.28"]),
        ("A='--a 1'\nA=\"$A --b 2\"\nA+=' --c 3'\nx $A", ["x", "--a", "1", "--b", "2", "--c", "3"]),
        ("A=(--a 1 # first\n --b 'c d')\nA+=(--e 5)\nx \"${A[@]}\"", ["x", "--a", "1", "--b", "c d", "--e", "5"]),
        ("A=()\nx \"${A[@]}\" --b 2", ["x", "--b", "2"]),
        ("A=''\nx $A --b \"$A\"", ["x", "--b", ""]),
        ("x --a $(realpath ./m) --b 2", ["x", "--a", "$(realpath ./m)", "--b", "2"]),
        ("x --a `realpath ./m` --b 2", ["x", "--a", "$(realpath ./m)", "--b", "2"]),
        ("A=${1:?give a model}\nx --a $A --b 2", ["x", "--a", "${1:?give a model}", "--b", "2"]),
        ("x --a ${Y:-\"b c\"} ${Z:-$W}", ["x", "--a", "b", "c", "$W"]),
        ("x --a 1 > log --b 2 2>&1", ["x", "--a", "1", "--b", "2"]),
        ("x --a 1; echo --a 2", ["x", "--a", "1"]),
        ("x --a 1 \\  \n  --b 2 \\\n  # --c 3 \\\n  --d 4\n", ["x", "--a", "1", "--b", "2", "--d", "4"]),
        ("x --a 1 \\\n\n  --b 2", ["x", "--a", "1", "--b", "2"]),
        ("x --a 1 \\\r\n --b 2\r\n", ["x", "--a", "1", "--b", "2"]),
        ("\ufeffx --a 1", ["x", "--a", "1"]),
        ("x --lr=1e-6 --a=\"b c\"", ["x", "--lr=1e-6", "--a=b c"]),
        ("A=1 B=2\nx $A $B", ["x", "1", "2"]),
        ("declare -a A=(1 2)\nx ${A[@]}", ["x", "1", "2"]),
        ("x 'never closed", ["x", "'never", "closed"]),
        ('x "never closed', ["x", '"never', "closed"]),
        ("x ${never", ["x", "${never"]),
    ],
)  # fmt: skip
def test_words_are_a_shells(script: str, words: list[str]) -> None:
    assert next(commands(script)) == words


@pytest.mark.parametrize(
    "script",
    [
        f"cd /there && {TRAIN} --seed 7 && echo done",
        f"if true; then\n  {TRAIN} --seed 7\nfi",
        f"(\n  {TRAIN} --seed 7\n) 2>&1 | tee log",
        f"docker run image bash -lc '{TRAIN} --seed 7'",
        f'sbatch -N 2 --wrap="{TRAIN} --seed 7"',
        f"read -r -d '' COMMAND <<EOF\n{TRAIN} --seed 7\nEOF\necho don't",
        f"cat > notes <<'EOF'\nit's {TRAIN}\nEOF\n{TRAIN} --seed 7".replace(f"it's {TRAIN}", "it's here"),
        f"echo {TRAIN} --seed 3\n{TRAIN} --seed 7",
        f"# {TRAIN} --seed 3\nCUDA_VISIBLE_DEVICES=0 nohup {TRAIN} --seed 7 > log 2>&1 &",
        f"COMMAND='{TRAIN} --seed 7'\n$COMMAND",
    ],
)
def test_the_command_is_found_wherever_it_stands(script: str) -> None:
    found = [words for words in commands(script) if "openrlhf.cli.train_ppo_ray" in words]
    assert len(found) == 1
    begin = found[0].index(BEGIN[0])
    assert found[0][begin : begin + 5] == [*BEGIN, "--seed", "7"]


LEAST = "--pretrain m --prompt_data a.jsonl --actor_num_gpus_per_node 1 --vllm_num_engines 1"


def test_the_command_that_trains_by_reinforcement_is_taken_and_others_like_it_are_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    script = tmp_path / "run.sh"
    script.write_text(f"python3 -m openrlhf.cli.train_sft --pretrain base\n{TRAIN} {LEAST} --seed 7\n")
    assert main(["convert", str(script)]) == 0
    out, said = capsys.readouterr()
    assert yaml.safe_load(out)["train"]["seed"] == 7 and "different commands" not in said
    script.write_text(f"{TRAIN} {LEAST} --seed 7\n{TRAIN} {LEAST} --seed 8\n{TRAIN} {LEAST} --seed 7\n")
    assert main(["convert", str(script)]) == 0
    out, said = capsys.readouterr()
    assert yaml.safe_load(out)["train"]["seed"] == 7 and "2 different commands train in there; the first" in said


def test_a_variable_in_a_list_is_said_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text(f"{TRAIN} {LEAST} --prompt_data $A,b.jsonl\n")
    assert main(["convert", str(script)]) == 0
    assert "data.prompt_dataset: $A holds a variable" in capsys.readouterr().err
