from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from apps import cli
from apps.common.function import gather_lists
from apps.common.options import option, resolve_configs
from apps.ctr import DOMAIN
from data_prep.ctr.prepare import prepare
from domains.common.errors import ConfigError

ROOT = Path(__file__).parents[2]


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


@pytest.mark.parametrize("words", [[], ["--help"], ["ctr"], ["ctr", "--help"], ["ctr", "configs"], ["--version"]])
def test_help_imports_nothing_heavy(words):
    code = (
        f"import sys; from apps.cli import main; main({words}); print('torch' in sys.modules, 'polars' in sys.modules)"
    )
    assert run_python(code).splitlines()[-1] == "False False"


def test_commands_that_train_nothing_leave_torch_and_lightning_out():
    modules = {"apps.common.prep", "apps.common.seeds", "apps.common.demo", "apps.common.weights"}
    for name in cli.DOMAINS:
        domain = importlib.import_module(f"apps.{name}").DOMAIN
        references = [*domain.preparations, domain.apply, *(reference for reference, _ in domain.commands.values())]
        modules |= {reference.partition(":")[0] for reference in references}
    loaded = "'torch' in sys.modules, 'lightning' in sys.modules"
    lines = [f"import {module}; print('{module}', {loaded})" for module in sorted(modules)]
    shown = run_python("import sys\n" + "\n".join(lines)).splitlines()
    assert shown == [f"{module} False False" for module in sorted(modules)]


@pytest.mark.parametrize("name", cli.DOMAINS)
def test_help_of_a_domain_names_all_it_has(name, capsys):
    domain = importlib.import_module(f"apps.{name}").DOMAIN
    assert cli.main([name]) == 0
    shown = capsys.readouterr().out
    assert domain.title == cli.DOMAINS[name]
    assert all(command in shown for command in (*cli.COMMANDS, *domain.commands))


def test_a_missing_library_is_one_line(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.delitem(sys.modules, "apps.medical.heatmap", raising=False)
    assert cli.main(["medical", "heatmap", "--help"]) == 2
    assert (
        capsys.readouterr().err.strip().startswith("heptad: cv2 is not installed; run: pip install 'heptad[medical]'")
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fit", "--config", "demo", "--model.dimm", "3"], "did you mean --model.dim?"),
        (["fit", "--config", "demo", "--model.dim", "wide"], "\"model.dim\": Expected a <class 'int'>"),
        (["fit"], "required: --data.root"),
        (["prep", "criteo", "--rw", "x"], "did you mean --raw?"),
    ],
)
def test_a_mistyped_option_is_one_line(capsys, words, said):
    assert cli.main(["ctr", *words]) == 2
    shown = capsys.readouterr().err.strip()
    assert said in shown and "\n" not in shown
    assert shown.endswith(
        f"heptad ctr {' '.join(words[:2] if words[0] == 'prep' else words[:1])} --help lists the options"
    )


def test_options_of_other_data_sets_are_not_shown(capsys):
    with pytest.raises(SystemExit):
        cli.main(["medical", "prep", "covidx", "--help"])
    shown = capsys.readouterr().out
    assert "--version" in shown and "--mapping" not in shown and "--dataset" not in shown


def test_imports_point_one_way():
    wrong = []
    for top, forbidden in {"domains": ("apps", "data_prep"), "data_prep": ("apps", "domains", "torch")}.items():
        for path in (ROOT / top).rglob("*.py"):
            for number, line in enumerate(path.read_text().splitlines(), 1):
                words = line.split()
                if len(words) > 1 and line.startswith(("import ", "from ")) and words[1].split(".")[0] in forbidden:
                    wrong.append(f"{path}:{number}: {line}")
    assert wrong == []


def test_help_lists_domains_and_commands(capsys):
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*cli.DOMAINS, *cli.COMMANDS, "doctor"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["crt"], "unknown domain 'crt'; did you mean 'ctr'?"),
        (["ctr", "tran"], "unknown command 'tran'"),
        (["ctr", "fit", "--config", "criteoo"], "did you mean 'criteo'?"),
        (["ctr", "fit", "--system", "nothing"], "ctr has: autoint, logistic-regression"),
        (["ctr", "fit", "--data.root", "/nowhere"], "/nowhere/dataset.json: not found"),
        (["ctr", "test"], "no weights to use"),
        (["ctr", "test", "--ckpt_path", "https://x.org/a.ckpt", "--data.root", "x"], "URLs are refused"),
        (["ctr", "test", "--ckpt_path", "no.ckpt", "--data.root", "x"], "no.ckpt: no such file"),
        (["ctr", "fit", "--init_from", "s3://x/a", "--ckpt_path", "s3://x/b", "--data.root", "x"], "URLs are refused"),
        (["ctr", "prep", "criteo", "--raw", "/nowhere/x.txt", "--out", "/tmp/nothing"], "/nowhere/x.txt"),
        (["ctr", "import-weights", "fuxictr", "--weights", "no.pt", "--options", "no.json", "--out", "x"], "no.pt"),
        (["ctr", "configs", "x"], "takes no options"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert shown[-1].startswith("heptad: ")
    assert message in shown[-1]
    assert "Traceback" not in "".join(shown)
    assert list(tmp_path.iterdir()) == []


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    def broken(words):
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "_dispatch", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["ctr"])


def test_interrupt(monkeypatch):
    def interrupted(words):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_dispatch", interrupted)
    assert cli.main(["ctr"]) == 130


def test_options_are_read_before_the_parser_exists():
    assert option(["--run", "a", "--run=b"], "run") == "b"
    assert option(["--runs", "a"], "run") is None
    assert resolve_configs(DOMAIN, ["--config", "criteo", "--config=frappe"]) == [
        "--config", str(DOMAIN.config_directory / "criteo.yaml"), f"--config={DOMAIN.config_directory / 'frappe.yaml'}"
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="shipped are: "):
        resolve_configs(DOMAIN, ["--config", "zzz"])


def test_prep_options_may_be_written_as_people_do():
    words = ["--raw", "a", "b", "--min-count", "5", "--ratios", "0.8", "0.1", "0.1", "--out=x-y"]
    got = gather_lists(words, inspect.signature(prepare))
    assert got == ["--raw", '["a", "b"]', "--min_count", "5", "--ratios", "[0.8,0.1,0.1]", "--out=x-y"]


def test_folders_given_one_by_one_are_all_taken():
    words = ["--raw", "a", "--min-count", "5", "--raw", "b", "c"]
    got = gather_lists(words, inspect.signature(prepare))
    assert got == ["--raw", '["a", "b", "c"]', "--min_count", "5"]


@pytest.mark.parametrize("verb", ["prep", "fit", "test", "predict", "demo", "export", "import-weights"])
def test_every_command_explains_itself(verb, heptad):
    shown = heptad("ctr", verb, "--help").stdout
    assert "usage: " in shown
    if verb in ("fit", "test"):
        assert "--model.heads" in shown
        assert "attention heads" in shown


def test_doctor(heptad):
    shown = heptad("doctor").stdout
    for word in ("torch", "medical", "memory", "disk", "C++"):
        assert word in shown


def test_configs_are_listed(heptad):
    shown = heptad("ctr", "configs").stdout
    for name in ("criteo", "avazu", "kdd12", "movielens", "frappe", "demo"):
        assert name in shown
