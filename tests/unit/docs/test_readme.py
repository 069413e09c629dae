"""The README, held against the code: its program runs, its commands and links are true.

See also: ``tests/worker/test_readme.py``, which compares the output of its worker, and
``test_docs.py`` for the documentation that it leads to.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from tests.support.pages import DOCS, PAGES, check_command
from tests.support.places import ROOT
from tests.support.readme import PAGE, PROSE, README, blocks, typed_commands

ENVIRONMENT = {"CELERY_BROKER_URL": "memory://", "CELERY_RESULT_BACKEND": "cache+memory://"}
MOST_BYTES = 12 * 1024


def test_its_program_imports_and_routes(tmp_path):
    """Each tool goes to the queue, and has the limits, that the comments beside it say."""
    (tmp_path / "tools.py").write_text(blocks("python")[0].text)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c",
         "import json, tools\n"
         "print(json.dumps({name: [tools.app.amqp.router.route({}, name)['queue'].name,\n"
         "    *tools.app.tasks[name].budget_in(tools.app.tasks[name].home()).time_limits()]\n"
         "    for name in ('fs_read', 'tools.critics_run')}))\n"],
        cwd=tmp_path, env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "fs_read": ["file_read", 300, 450],
        "tools.critics_run": ["critic", 600, 900],  # 600 x 1.5
    }


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: f"line {block.line}")
def test_its_programs_compile(block):
    """And none is longer than a screen."""
    compile(block.text, "README.md", "exec")
    assert len(block.text.splitlines()) <= 20


def test_its_commands_and_their_options_exist():
    """As click knows them: every command, option and argument."""
    assert PAGE.celery_commands
    for arguments in PAGE.celery_commands:
        check_command(arguments)


@pytest.mark.parametrize(
    "command",
    [
        "pip install -e '.[demo]' && python -m examples.tools",
        "pip install -e '.[test]' && pytest",
    ],
)
def test_the_two_commands_stand_on_a_line_of_their_own(command):
    """Word for word: .ci/run reads them from here."""
    assert typed_commands().count(command) == 1


def test_it_is_short():
    """What is longer belongs into the documentation."""
    assert len(README.encode()) <= MOST_BYTES


def test_its_extras_are_those_of_the_project():
    """No more and no less."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    line = README.partition("\nExtras: ")[2].partition("\n\n")[0]
    told = {name for name in re.findall(r"`(\w+)`", line) if not name.startswith("budgets_")}
    assert told == set(project["optional-dependencies"])
    assert set(re.findall(r"celery-budgets\[(\w+)\]", README)) <= told


def test_its_links_lead_somewhere():
    """To a file, and to every page of the documentation but those that a page leads to."""
    links = re.findall(r"\]\(([^)]+)\)", PROSE)
    for link in links:
        assert (ROOT / link).exists(), link
    missing = {f"docs/{name}" for name in PAGES} - set(links)
    first = PAGES["index.md"].path.read_text()
    for name in missing:
        path = name.removeprefix("docs/").removesuffix(".md")
        # The guides' list ends with a pattern.
        assert path in first or path.startswith("guides/"), name


def test_its_files_exist():
    """Paths in backquotes."""
    for path in set(re.findall(r"`((?:examples|tests|\.env)[\w./-]*|docker-compose\.yml)`", PROSE)):
        assert (ROOT / path).exists(), path
    assert DOCS.exists()


def test_the_changelog_has_this_version():
    """In the form of keepachangelog.com."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert re.findall(r"^## \[(.+)\] - (.+)$", text, flags=re.MULTILINE)[0][0] == project["version"]


def test_hooks_need_no_network():
    """The pre-commit hooks run what the test extra has installed."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in hooks["repos"]] == ["local"]
    assert {hook["language"] for repo in hooks["repos"] for hook in repo["hooks"]} == {"system"}
