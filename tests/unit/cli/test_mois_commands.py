"""The commands of `mois`: one line for a mistake, help, doctor, version."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from mois import __version__
from mois.cli import main as mois_main
from mois.cli import shipped_configs
from mois.cli.commands import COMMANDS, GROUPS, components, with_options
from mois.cli.doctor_checks import Finding
from mois.cli.shipped_configs import config_names, describe_config, find_config, with_shipped_configs
from mois.cli.train import MoisCLI
from mois.cli.train import main as train_main
from mois.cli.usage import TRAINING
from tests.support.paths import ROOT

pytestmark = pytest.mark.usefixtures("work_elsewhere")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["doctr"], "doctr is no command; did you mean doctor?"),
        (["fitt", "--config=c.yaml"], "fitt is no command; did you mean fit?"),
        (["fit", "--config=c.yaml"], "config: there is no file HERE/c.yaml"),
        (["fit", "--config=dmo"], "config: there is no file HERE/dmo; did you mean demo, a shipped config?"),
        (["configs", "dmo"], f"dmo is no shipped config; there is {', '.join(config_names())}."),
        (["configs", "--out=c.yaml"], "out=c.yaml is for one config; name it: mois configs NAME --out c.yaml"),
        (
            ["segment", "--bundle=b", "scan.nii.gz"],
            "scan.nii.gz belongs to no option; write it right behind the command, segment scan.nii.gz ...",
        ),
        (
            ["view", "--bundle=b", "scan.nii.gz"],
            "scan.nii.gz belongs to no option; write it right behind the command, view scan.nii.gz ...",
        ),
        (
            ["try", "--count=2", "scan.nii.gz"],
            "scan.nii.gz belongs to no option; write it right behind the command, try scan.nii.gz ...",
        ),
        (["phantom", "--out=p", "--seed=-1"], "seed=-1 is no seed; choose 0 to 4294967295."),
        (
            ["phantom"],
            "not set: out; write mois phantom OUT, or set it with --out=VALUE, or in a file given with --config FILE",
        ),
        (
            ["try", "scan.nii.gz"],
            "not set: scan; write mois try BUNDLE SCAN..., or set it with --scan=VALUE, or in a file given with "
            "--config FILE",
        ),
        (
            ["segment", "scan.nii.gz"],
            "not set: bundle, prompts, out; set it with --bundle=VALUE, or in a file given with --config FILE",
        ),
        (["phantom", "--out=p", "--subjcts=2"], "subjcts is no setting; did you mean subjects?"),
        (
            ["evaluate", "--data=none", "--out=o", "--protocol.counts", "1"],
            "protocol.counts=1 is not allowed; give a list such as [1,3]",
        ),
        (
            ["evaluate", "--data=none", "--out=o", "--protocol.promptd", "3"],
            "protocol.promptd is no setting; did you mean protocol.counts?",
        ),
        (["phantom", "--out=p", "--subjects=two"], "subjects=two is not allowed; give int"),
        (
            ["phantom", "--out=p", "--types", "ring,rng"],
            "types=rng: no such lesion type; there is solid_bright, ring, striped, dark",
        ),
        (
            ["phantom", "--out=p", "--types=[rng]"],
            "types=rng: no such lesion type; there is solid_bright, ring, striped, dark",
        ),
    ],
)
def test_wrong_mois_commands_end_in_one_line(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        mois_main(arguments)
    assert capsys.readouterr().err == f"error: {line.replace('HERE', str(Path.cwd()))}\n"


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        (["evaluate", "--trust", "lab"], ["evaluate", '--trust=["lab"]']),
        (["segment", "a.nii", "--trust=lab,lib.x"], ["segment", '--image=["a.nii"]', '--trust=["lab", "lib.x"]']),
        (["segment", "A=a.nii", "B=b.nii"], ["segment", '--image=["A=a.nii", "B=b.nii"]']),
        (["segment", "--image", "A=a", "--out=o", "--image=B=b"], ["segment", '--image=["A=a", "B=b"]', "--out=o"]),
        (["try", "b", "A=a", "B=b", "--count=2"], ["try", '--scan=["A=a", "B=b"]', "--bundle=b", "--count=2"]),
        (["compare", "A", "B", "--names=[a,b]"], ["compare", '--runs=["A", "B"]', "--names=[a,b]"]),
        (["try", "b", "a", "--pixel_mm", "2"], ["try", '--scan=["a"]', "--bundle=b", "--pixel_mm=[2]"]),
        (["try", "--pixel_mm=0.5,-1", "--count=2"], ["try", "--pixel_mm=[0.5,-1]", "--count=2"]),
        (["try", "--pixel_mm", "[1, 2]", "--count=2"], ["try", "--pixel_mm=[1, 2]", "--count=2"]),
        (["folds", "--only", "0"], ["folds", "--only=[0]"]),
        (["evaluate", "--trust=null", "--out", "trust"], ["evaluate", "--trust=null", "--out", "trust"]),
        (["compare", "A", "B", "--out", "C"], ["compare", '--runs=["A", "B"]', "--out", "C"]),
        (["view", "a", "--no_browser"], ["view", '--image=["a"]', "--no_browser=true"]),
        (["view", "a", "--no_browser", "--port=1"], ["view", '--image=["a"]', "--no_browser=true", "--port=1"]),
        (["view", "a", "--no_browser", "false"], ["view", '--image=["a"]', "--no_browser", "false"]),
        (["evaluate", "--log", "true", "--out=o"], ["evaluate", "--log", "true", "--out=o"]),
        (["doctr"], ["doctr"]),
        ([], []),
    ],
)  # fmt: skip
def test_words_become_the_lists_that_options_take(given: list[str], parsed: list[str]) -> None:
    assert with_options(given) == parsed


@pytest.mark.parametrize("given", [[], ["--help"], ["-h"]])
def test_all_commands_are_listed_a_line_each(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    mois_main(given)
    lines = capsys.readouterr().out.splitlines()
    words = [f"{name} {second}" for name, group in GROUPS.items() for second in group]
    assert [line[2:].partition("  ")[0] for line in lines[2:]] == [
        *TRAINING,
        *(command.__name__ for command in COMMANDS),
        *words,
    ]
    assert all(len(line) <= 100 and line.endswith(".") for line in lines[2:])


@pytest.mark.parametrize(
    ("words", "short"),
    [
        (["view"], "Short: mois view IMAGE..."),
        (["try"], "Short: mois try BUNDLE SCAN..."),
        (["bank", "show"], "Short: mois bank show FILE"),
        (["bundle", "push"], "Short: mois bundle push BUNDLE REPO"),
        (["adapt"], ""),
    ],
)
def test_help_says_which_words_need_no_option(words: list[str], short: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        mois_main([*words, "--help"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Short: ")]
    assert lines == ([short] if short else [])


def test_help_waits_for_no_heavy_package() -> None:
    code = (
        "import sys\nfrom mois.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'lightning', 'sam2', 'peft', 'torchio') if name in sys.modules])"
    )
    text = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    ).stdout
    assert "phantom" in text
    assert text.splitlines()[-1] == "[]"


def test_the_parser_of_a_command_is_made_without_those_of_other_commands() -> None:
    assert list(components("evaluate")) == ["evaluate"]
    assert components("bank") == {"bank": components()["bank"]}
    assert components("evalute") == components()  # so the message can name what was meant
    assert set(components()) == {*(command.__name__ for command in COMMANDS), *GROUPS}


def test_doctor_says_one_line_for_each_thing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mois.cli.doctor_checks.packages", lambda: Finding("packages", False, "torch is missing; run `make setup`")
    )
    with pytest.raises(SystemExit, match="1"):
        mois_main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["packages:", "device:", "disk:", "tracking:"]
    assert lines[0] == "FIX  packages: torch is missing; run `make setup`"


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    from mois.cli import main as mois
    from mois.cli.train import main as train

    for program in (mois, train):
        program(["--version"])
        assert capsys.readouterr().out.startswith(f"mois {__version__}")


def test_mois_fit_takes_the_command_line_of_train_py(capsys: pytest.CaptureFixture[str]) -> None:
    helps = []
    for program in (mois_main, train_main):
        with pytest.raises(SystemExit, match="0"):
            program(["test", "--help"])
        helps.append(capsys.readouterr().out)
    assert helps[0] == helps[1]
    assert "--start_from" in helps[0]


def test_python_m_mois_is_the_same_program() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "mois", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith(f"mois {__version__}")


@pytest.mark.parametrize("name", config_names())
def test_every_shipped_config_has_one_line_and_can_be_written(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = describe_config(find_config(name))
    assert line.endswith(".")
    assert len(line) <= 120
    mois_main(["configs"])
    assert line in capsys.readouterr().out
    out = tmp_path / "mine.yaml"
    mois_main(["configs", name, "--out", str(out)])
    assert out.read_text(encoding="utf-8") == (ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        mois_main(["configs", name, "--out", str(out)])
    assert "exists already" in capsys.readouterr().err


def test_a_parser_is_made_for_the_given_command_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []
    usual = MoisCLI._prepare_subcommand_parser

    def noted(self: MoisCLI, klass: type, subcommand: str, **more: Any) -> Any:
        made.append(subcommand)
        return usual(self, klass, subcommand, **more)

    monkeypatch.setattr(MoisCLI, "_prepare_subcommand_parser", noted)
    for words, expected in ((["test", "--help"], ["test"]), (["--help"], ["fit", "validate", "test", "predict"])):
        made.clear()
        with pytest.raises(SystemExit) as stop:
            MoisCLI(words)
        assert (stop.value.code, made) == (0, expected)
    assert "weights_only" not in capsys.readouterr().out


def test_a_config_of_the_user_in_a_checkout_is_not_listed_as_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("demo", "mine", "other", "trainer/ddp", "trainer/other"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text("# mois fit\n", encoding="utf-8")
    monkeypatch.setattr(shipped_configs, "SHIPPED", tmp_path)
    assert config_names() == ["demo", "trainer/ddp"]
    with pytest.raises(ValueError, match=r"mine is no shipped config; there is demo, trainer/ddp\."):
        find_config("mine")


def test_every_config_that_git_keeps_is_shipped_and_packed() -> None:
    packed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    files = [f"configs/{name}.yaml" for name in config_names()]
    assert [entry for entry in packed["mois"] if entry.startswith("configs/")] == files
    if (ROOT / ".git").exists():
        kept = subprocess.run(["git", "ls-files", "configs"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert sorted(files) == kept.stdout.split()


def test_the_name_of_a_shipped_config_stands_for_its_file_unless_the_user_has_such_a_file() -> None:
    demo, ddp = (str(ROOT / "configs" / file) for file in ("demo.yaml", "trainer/ddp.yaml"))
    given = ["--config", "demo", "--config=configs/demo.yaml", "--trainer", "trainer/ddp", "--trainer=null"]
    assert with_shipped_configs(given) == ["--config", demo, f"--config={demo}", "--trainer", ddp, "--trainer=null"]
    Path("demo").touch()
    assert with_shipped_configs(["--config", "demo", "-c"]) == ["--config", "demo", "-c"]


@pytest.mark.parametrize(
    ("device", "line"),
    [
        ("cuda:1", "device=cuda:1 is unknown; choose auto, cpu, cuda, gpu or mps."),
        ("cuda", "device=cuda: torch finds 0 CUDA devices here"),
        ("gpu", "device=cuda: torch finds 0 CUDA devices here"),
    ],
)
def test_a_device_that_is_not_there_is_refused_before_anything_is_written(
    device: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(SystemExit):
        mois_main(["adapt", f"--data={tmp_path}", f"--out={tmp_path / 'made'}", f"--device={device}"])
    assert capsys.readouterr().err.startswith(f"error: {line}")
    assert not list(tmp_path.iterdir())
