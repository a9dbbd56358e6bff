"""Commands in the documentation are real: they parse, their files exist, the template runs."""

import re
import shlex
from pathlib import Path

import pytest

import run_benchmark

ROOT = Path(run_benchmark.__file__).parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("*/README.md")]
PAGES += [*ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]
COMMANDS = [
    (page.relative_to(ROOT), line.split("  #")[0].strip())
    for page in PAGES
    for block in re.findall(r"```\n(.*?)```", page.read_text(), re.DOTALL)
    for line in block.splitlines()
    if "python" in line
]


def test_there_are_commands():
    assert len(COMMANDS) >= 12


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_command(page: Path, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = shlex.split(command.split("&&")[-1])
    assert words[0].endswith("python"), command
    if words[1] == "-m":
        module = words[2].replace(".", "/")
        known = [ROOT / f"{module}.py", ROOT / module / "__main__.py"]
        assert words[2] in ("pytest", "venv") or any(path.exists() for path in known)
        return
    assert words[1] == "run_benchmark.py"
    monkeypatch.chdir(tmp_path)
    assert run_benchmark.main(["new", "method", "my_idea", "--dir", "plugins"]) == 0
    name = f"my_idea_{abs(hash((page, command)))}"  # names are registered once per process
    plugin = tmp_path / "plugins" / "my_idea.py"
    plugin.write_text(plugin.read_text().replace('"my_idea"', f'"{name}"'))
    words = [name if word == "my_idea" and "new" not in words else word for word in words]
    arguments = words[2:]
    if arguments[:1] == ["new"]:
        assert run_benchmark.main([*arguments[:3], "--dir", str(tmp_path / "other")]) == 0
    elif arguments[:1] == ["status"]:
        assert len(arguments) > 1
    elif arguments[:1] == ["check"]:
        assert (tmp_path / arguments[1]).exists()
    elif "--list" in arguments:
        assert run_benchmark.main(arguments) == 0
    elif "--help" in arguments:
        with pytest.raises(SystemExit) as stop:
            run_benchmark.main(arguments)
        assert not stop.value.code
    else:
        run_benchmark.parse(arguments)
