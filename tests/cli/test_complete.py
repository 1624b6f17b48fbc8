import subprocess

import pytest

from xrvlm.cli.complete import SHELLS, complete, script
from xrvlm.cli.main import NAMES
from xrvlm.errors import UserError
from xrvlm.methods import registry


@pytest.mark.parametrize(("words", "expected"), [
    (["ad"], ["adapt"]), (["data", ""], ["check"]), (["cache", "p"], ["prune"]), (["adapt", "shots"], ["shots="]),
    (["adapt", "method=xr"], ["method=xr_vlm", "method=xr_vlm_plus"]), (["adapt", "val="], ["val=true", "val=false"]),
    (["eval", "among=d"], ["among=data"]), (["adapt", "method=tip_adapter", "method.b"], ["method.beta="]),
    (["adapt", "recipe.epo"], ["recipe.epochs="]), (["adapt", "text.de"], ["text.descriptions="]),
    (["adapt", "--mul"], ["--multirun"]), (["adapt", "nothing="], []),
])
def test_what_a_word_may_become(words, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert complete(words) == expected


def test_every_command_and_every_method_is_offered():
    assert {name.split()[0] for name in NAMES} < set(complete([""]))
    assert complete(["adapt", "method="]) == [f"method={name}" for name in registry.targets()]


def test_paths_are_completed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my birds").mkdir()
    (tmp_path / "birds.csv").touch()
    assert complete(["adapt", "data.root=m"]) == ["data.root=my birds/"]
    assert complete(["adapt", f"data.root={tmp_path}/b"]) == [f"data.root={tmp_path}/birds.csv"]
    assert "run=latest" in complete(["eval", "run="])


def test_the_script_of_an_unknown_shell_is_an_error():
    with pytest.raises(UserError, match="bash, zsh, fish"):
        script(["tcsh"])
    assert all("__complete" in script([shell]) for shell in SHELLS)


def test_bash_completes_commands_and_groups():
    program = "\n".join([
        script(["bash"]), "COMP_WORDS=(xrvlm adapt method=co)", "COMP_CWORD=2", 'COMP_LINE="xrvlm adapt method=co"',
        "COMP_POINT=${#COMP_LINE}", 'COMP_WORDBREAKS=" "', "_xrvlm 2>/dev/null", 'echo "${COMPREPLY[@]}"'])
    found = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert found == ["method=cocoop", "method=coop"] or not found, "without the command on the path there is nothing"
