"""The README, held against the code: its programs run, its commands and tables are true.

See also: ``tests/worker/test_readme.py``, which compares the output of its worker, and
``test_metric_names.py`` for metrics and alerts.
"""

from __future__ import annotations

import ast
import configparser
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib

import click
import pytest
import yaml
from celery.bin.celery import celery

from celery_budgets.budget import Budget, BudgetFields
from celery_budgets.cli import lanes
from celery_budgets.fields import FIELDS
from celery_budgets.lanes import DEFAULT_LANES
from celery_budgets.outcomes import Outcome
from celery_budgets.process import interrupt, solo_interrupt, watchdog
from celery_budgets.task import BudgetedTask
from celery_budgets.telemetry import logs, names, spans
from celery_budgets.units import format_size, parse_duration, parse_size
from celery_budgets.worker import ceiling, checks, gate_step, threads
from tests.readme import PROSE, README, blocks, celery_commands, table, typed_commands
from tests.support import ROOT

#: Needs a worker that answers: see tests/worker/test_readme.py.
ASKING = "budgets.statistics()"
ENVIRONMENT = {"CELERY_BROKER_URL": "memory://", "CELERY_RESULT_BACKEND": "cache+memory://"}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A directory with the README's first program in it."""
    directory = tmp_path_factory.mktemp("readme")
    (directory / "tools.py").write_text(blocks("python")[0].text)
    return directory


def run(scratch, program):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=scratch, env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_its_program_imports_and_routes(scratch):
    """Each tool goes to the queue, and has the limits, that the comments beside it say."""
    done = run(
        scratch,
        "import json, tools\n"
        "print(json.dumps({name: [tools.app.amqp.router.route({}, name)['queue'].name,\n"
        "    *tools.app.tasks[name].budget_in(tools.app.tasks[name].home()).time_limits()]\n"
        "    for name in ('fs_read', 'tools.critics_run')}))\n",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "fs_read": ["file_read", 300, 450],
        "tools.critics_run": ["critic", 600, 900],  # 600 x 1.5
    }


def test_its_other_programs_run(scratch):
    """One after the other in one process, each with names of its own."""
    others = [block for block in blocks("python")[1:] if ASKING not in block.text]
    assert len(others) >= 4
    # Lines before it, so that a traceback names the line of the README.
    texts = ["\n" * (block.line - 1) + block.text for block in others]
    done = run(
        scratch,
        f"for text in {texts!r}:\n"
        "    names = {'__name__': 'readme'}\n"
        "    exec(compile(text, 'README.md', 'exec'), names)\n"
        "    if 'budgets' in names:\n"
        "        print(*names['budgets'].settings.lanes)\n",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["quick reports payments", "quick reports"]


def test_its_variables_make_the_lanes_that_it_says(scratch):
    """`CELERY_BUDGETS_LANES` and `CELERY_BUDGETS_TOOLS` as they are exported there."""
    exports = [line for line in typed_commands() if line.startswith("export CELERY_BUDGETS_")]
    script = "; ".join([*exports, '"$0" -c "$1"'])
    program = (
        "import tools; lanes = tools.budgets.settings.lanes;"
        "print(*lanes, lanes.of_tool('report_day').name, lanes['reports'].budget.hard_time_limit)"
    )
    # The program's own critic lane is not there then: its task is only complained of when used.
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, program],
        cwd=scratch, env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "quick reports reports 900.0\n", done.stderr


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: f"line {block.line}")
def test_its_programs_compile(block):
    """And none is longer than a screen."""
    compile(block.text, "README.md", "exec")
    assert len(block.text.splitlines()) <= 20


@pytest.mark.parametrize("arguments", celery_commands(), ids=" ".join)
def test_its_commands_and_their_options_exist(arguments):
    """As click knows them: every command, option and argument."""
    words = list(arguments)
    assert words[:2] == ["-A", "tools"]
    command: click.Command = celery
    context = click.Context(celery)
    words = words[2:]
    while isinstance(command, click.Group) and words:
        name = words.pop(0)
        if name == "flower" and name not in command.commands:
            return  # an extra
        found = lanes if name == "lanes" else command.get_command(context, name)
        assert found is not None, f"celery has no command {name}"
        command = found
    command.make_context("celery", words, resilient_parsing=True)


def test_every_command_of_ours_is_in_its_table():
    """In the order of the help page; the options beside it are some of its own."""
    context = click.Context(lanes)
    told = []
    for name, does in table("command", "does"):
        told.append(name.strip("`").removeprefix("celery -A tools lanes ").split()[0])
        command = lanes.get_command(context, told[-1])
        assert command is not None
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"`(--[a-z-]+)`", does)) <= known
    assert told == lanes.list_commands(context)


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


def test_its_table_of_settings():
    """Names, defaults and meanings, in the same order."""
    told = [(row[0], ast.literal_eval(row[1].strip("`")), row[2]) for row in
            table("setting", "default", "meaning")]  # fmt: skip
    assert told == [
        (f"`budgets_{name}`", field.default, field.help) for name, field in FIELDS.items()
    ]


def test_its_table_of_lanes():
    """The default ones."""
    assert table("lane", "concurrency", "tools") == [
        [
            f"`{lane.name}`",
            str(lane.concurrency),
            ", ".join(f"`{tool}`" for tool in lane.tools) or "everything that no other lane names",
        ]
        for lane in DEFAULT_LANES
    ]


def test_its_table_of_a_budget():
    """Every field, and the defaults that are numbers or words."""
    told = {row[0].strip("`"): row[1] for row in table("field", "default", "meaning")}
    assert list(told) == list(BudgetFields.__annotations__)
    budget = Budget()
    assert parse_duration(told["timeout"]) == budget.timeout
    assert float(told["escalation_factor"]) == budget.escalation_factor
    assert [parse_size(told[name]) for name in ("max_rss", "rss_warning")] == [
        budget.max_rss,
        budget.rss_warning,
    ]
    assert [told[name].strip('`"') for name in ("soft", "memory")] == [budget.soft, budget.memory]
    # All but one may stand on a task.
    assert [name for name in told if not hasattr(BudgetedTask, name)] == ["escalation_factor"]


def test_its_table_of_pools():
    """What a worker says of itself at its start."""
    pools = {
        "prefork": interrupt.ProcessInterrupt,
        "threads": interrupt.ThreadInterrupt,
        "gevent": interrupt.GreenletInterrupt,
        "solo": solo_interrupt.MainThreadInterrupt,
    }
    assert table("pool", "soft limit", "hard limit", "memory") == [
        [f"`{pool}`", *(kind.enforces[limit] for limit in ("soft", "hard", "memory"))]
        for pool, kind in pools.items()
    ]


def test_its_table_of_outcomes():
    """All of them, in order."""
    rows = table("outcome", "how the call ended", "the caller gets")
    assert [row[0] for row in rows] == [f"`{outcome.value}`" for outcome in Outcome]


def test_its_table_of_exit_codes():
    """Those of the code."""
    told = [(row[0], row[1]) for row in table("exit code", "of", "why")]
    assert told == [
        (str(interrupt.EXIT_CODE), "a pool process"),
        (str(gate_step.EXIT_CODE), "a worker"),
        (str(threads.EXIT_CODE), "a worker"),
        ("1", "a worker"),
    ]


def test_its_reasons_of_a_rejection():
    """The gauges of a gate, by whose names rejections are counted."""
    gauges = set(re.findall(r'Gauge\("(\w+)"', inspect.getsource(gate_step)))
    assert {row[0].strip("`") for row in table("reason", "what was above its limit")} == gauges


def test_its_other_reasons_of_a_rejection():
    """Those that are no gauge's name, in the order of the code."""
    reasons = [value for name, value in vars(names).items() if name.startswith("REASON_")]
    told = table("reason", "the call was not admitted because")
    assert [row[0].strip("`") for row in told] == reasons


def test_its_table_of_a_log_record():
    """The schema."""
    told = {row[0].strip("`"): row[1] for row in table("field", "type and unit")}
    assert told == logs.SCHEMA


def test_its_table_of_span_attributes():
    """Every own attribute, with the unit that stands beside its name in the code."""
    units = dict(re.findall(r'= "(celery_budgets\.[\w.]+)"(?:  # (\w+))?$',
                            inspect.getsource(names), re.MULTILINE))  # fmt: skip
    told = [(row[0].strip("`"), row[1].strip("`")) for row in table("attribute", "unit", "meaning")]
    assert told == list(units.items())


def test_its_numbers():
    """Of the code, in words around them that say which ones they are."""
    grace = interrupt.ProcessInterrupt
    for words in (
        f"acts {grace.soft_grace:g} s (soft)\nand {grace.hard_grace:g} s (hard) later",
        f"every {watchdog.TICK:g} s, and up to every {watchdog.FASTEST_TICK:g} s",
        f"within {spans.BATCH_MILLISECONDS / 1000:g} s after a call",
        f"less {ceiling.MARGIN:g} s",
        f"({ceiling.KOMBU_VISIBILITY_TIMEOUT:g} s by default)",
        f"(RabbitMQ, {checks.RABBITMQ_CONSUMER_TIMEOUT:g} s)",
        f"{format_size(Budget().hard_rss)}) the process is",
    ):
        assert words in PROSE, words


def test_its_names_of_span_events_and_resource_attributes():
    """All of them are told."""
    events = [value for name, value in vars(names).items() if name.startswith("EVENT_")]
    for name in (*events, *names.RESOURCE_ATTRIBUTES):
        assert f"`{name}`" in PROSE


def test_its_log_events_exist():
    """Every `budgets.something` that it has its reader look for is logged somewhere."""
    source = "".join(path.read_text() for path in (ROOT / "celery_budgets").rglob("*.py"))
    named = set(re.findall(r"\bbudgets\.([a-z_]+)\b(?!\()", PROSE))
    assert {name for name in named if f'"budgets.{name}' not in source} == set()


def test_its_symptoms_are_messages_of_the_code():
    """Every run of plain words in a quoted message stands in a string of the package."""
    strings = []
    for path in (ROOT / "celery_budgets").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "\0" for p in node.values]
                strings.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                strings.append(node.value)
    said = "\n".join(strings)
    quoted = [quote for row in table("symptom", "cause", "remedy")
              for quote in re.findall(r"`([^`]+)`", row[0]) if " " in quote]  # fmt: skip
    assert len(quoted) >= 10
    for quote in quoted:
        # Without numbers and their units, quoted names, and what is an example's own name.
        plain = re.split(r"\S*[\d'(:=]\S*(?: (?:s|MiB)\b)?|\b(?:critic|budgets_tiemout)\b", quote)
        for words in (part.strip() for part in plain):
            assert words in said, f"{words!r} of {quote!r}"


def test_its_extras_are_those_of_the_project():
    """No more and no less."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    line = README.partition("\nExtras: ")[2].partition("\n\n")[0]
    told = {name for name in re.findall(r"`(\w+)`", line) if not name.startswith("budgets_")}
    assert told == set(project["optional-dependencies"])
    assert set(re.findall(r"celery-budgets\[(\w+)\]", README)) <= told


def test_its_links_lead_somewhere():
    """To a heading, by the rule of the usual renderers, or to a file."""
    headings = re.findall(r"^#+ (.+)$", PROSE, flags=re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(([^)]+)\)", PROSE)
    assert links
    for link in links:
        found = link[1:] in slugs if link.startswith("#") else (ROOT / link).exists()
        assert found, link


def test_its_files_exist():
    """Paths in backquotes."""
    for path in set(re.findall(r"`((?:examples|tests|\.env)[\w./-]*|docker-compose\.yml)`", PROSE)):
        assert (ROOT / path).exists(), path


def test_its_unit_waits_longer_than_a_call_may_last():
    """The systemd template is one, and stops a worker warmly."""
    (block,) = blocks("ini")
    unit = configparser.RawConfigParser()
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(block.text)
    longest = max(lane.budget.hard_time_limit for lane in DEFAULT_LANES)
    assert unit.getfloat("Service", "TimeoutStopSec") > longest
    assert unit.get("Service", "KillMode") == "mixed"


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
