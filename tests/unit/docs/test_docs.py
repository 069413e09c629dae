"""The documentation, held against the code: programs run, and what is named exists.

See also: ``tests/worker/test_tutorial.py``, which follows the tutorial.
"""

from __future__ import annotations

import ast
import configparser
import inspect
import os
import re
import subprocess
import sys
import tomllib

import click
import pytest

import celery_budgets
from celery_budgets.cli import lanes
from celery_budgets.config import broker_limits
from celery_budgets.config.setting_fields import FIELDS
from celery_budgets.execution.limits import interrupts, watchdog
from celery_budgets.model import headers, reasons
from celery_budgets.model.budget import Budget, BudgetFields
from celery_budgets.model.lane import Lane
from celery_budgets.model.lanes import DEFAULT_LANES
from celery_budgets.model.outcomes import Outcome
from celery_budgets.tasks.task import BudgetedTask
from celery_budgets.telemetry import attributes as names
from celery_budgets.telemetry import spans
from celery_budgets.telemetry.metrics import METRICS
from celery_budgets.units import format_size, parse_duration, parse_size
from celery_budgets.worker.memory import gauges, replacement
from celery_budgets.worker.pool import abandoned_threads
from celery_budgets.worker.startup import checks
from tests.support.pages import ALL, DOCS, FACTS, PAGES, PROSE, check_command, script, table
from tests.support.places import ROOT
from tests.support.readme import blocks as readme_blocks

ENVIRONMENT = {"CELERY_BROKER_URL": "memory://", "CELERY_RESULT_BACKEND": "cache+memory://"}
#: Pages whose programs make a project together, and the app of each.
PROJECTS = {"guides/django.md": "mysite", "guides/flask.md": "make_celery"}
#: Pages whose programs are run elsewhere: by workers, or as one. So are those of a page that has
#: a `tools.py` of its own.
ELSEWHERE = {*PROJECTS, "tutorial.md"}
#: Needs a worker that answers: see tests/worker/test_readme.py.
ASKING = "budgets.statistics()"
SOURCE = "".join(path.read_text() for path in (ROOT / "celery_budgets").rglob("*.py"))

pages = pytest.mark.parametrize("page", PAGES.values(), ids=list(PAGES))


def run(directory, *arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": f"{directory}:{ROOT}"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pages
def test_its_programs_compile(page):
    for block in page.of("python"):
        compile(block.text, page.name, "exec")


def test_programs_run(tmp_path):
    """One after the other in one process, each with names of its own."""
    (tmp_path / "tools.py").write_text(readme_blocks("python")[0].text)
    programs = [
        # Lines before it, so that a traceback names the line of the page.
        (page.name, "\n" * (block.line - 1) + block.text)
        for name, page in PAGES.items()
        if name not in ELSEWHERE and not any(b.text.startswith("# tools.py") for b in page.blocks)
        for block in page.of("python")
        if block.file is None and ASKING not in block.text
    ]
    assert len(programs) >= 8
    done = run(
        tmp_path,
        "-W", "error", "-c",
        f"for name, text in {programs!r}:\n"
        "    exec(compile(text, name, 'exec'), {'__name__': 'docs'})\n",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_exported_variables_make_the_lanes_that_the_page_says(tmp_path):
    """`CELERY_BUDGETS_LANES` and `CELERY_BUDGETS_TOOLS` as they are exported there."""
    (tmp_path / "tools.py").write_text(readme_blocks("python")[0].text)
    typed = PAGES["guides/lanes-and-limits.md"].typed
    exports = [line for line in typed if line.startswith("export CELERY_BUDGETS_")]
    assert len(exports) == 2
    script = "; ".join([*exports, '"$0" -c "$1"'])
    program = (
        "import tools; lanes = tools.budgets.settings.lanes;"
        "print(*lanes, lanes.of_tool('report_day').name, lanes['reports'].budget.hard_time_limit)"
    )
    # The program's own critic lane is not there then: its task is only complained of when used.
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, program],
        cwd=tmp_path, env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "quick reports reports 900.0\n", done.stderr


@pytest.mark.parametrize(("name", "app"), PROJECTS.items())
def test_a_project_of_a_web_framework_is_checked_well(name, app, tmp_path):
    """Its files, as the page has them, make an app of which `lanes check` says no word of bad."""
    pytest.importorskip(name.partition("/")[2].removesuffix(".md"))
    page = PAGES[name]
    for block in page.of("python"):
        if block.file is not None:
            path = tmp_path / block.file
            path.parent.mkdir(exist_ok=True)
            path.write_text(block.text)
    if app == "mysite":
        settings = tmp_path / "mysite" / "settings.py"
        settings.write_text(settings.read_text() + "INSTALLED_APPS = ['shop']\nUSE_TZ = True\n")
        (tmp_path / "mysite" / "__init__.py").write_text("from .celery import app as celery_app\n")
    done = run(tmp_path, "-m", "celery", "-A", app, "lanes", "check", "--no-broker")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "configuration  2 lanes, " in done.stdout


@pages
def test_its_commands_and_their_options_exist(page):
    """As click knows them: every command, option and argument."""
    for arguments in page.celery_commands:
        check_command(arguments)


@pages
def test_its_links_lead_somewhere(page):
    """To a heading or a label of a page, or to a file."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.prose):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.path.parent / path).resolve() if path else page.path
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in PAGES[str(target.relative_to(DOCS))].anchors, f"{page.name}: {link}"


@pages
def test_what_it_names_exists(page):
    """Settings, variables, metrics, span attributes and log events."""
    settings = {f"budgets_{name}" for name in FIELDS}
    known = {value for name, value in vars(headers).items() if name.startswith("HEADER_")}
    named = set(re.findall(r"(?<![\w.])budgets_[a-z_]+\b", page.text)) - {"budgets_tiemout"}
    assert named <= settings | known
    variables = set(re.findall(r"\bCELERY_(BUDGETS_[A-Z_]+)\b", page.text))
    assert {name.lower() for name in variables} <= settings
    series = {one for name in METRICS for one in exported(name)}
    assert set(re.findall(r"\bcelery_budgets_[a-z_]+", page.text)) <= series
    events = set(re.findall(r"\bbudgets\.([a-z_]+)\b(?!\()", page.text))
    assert {event for event in events if f'"budgets.{event}' not in SOURCE} <= {"md"}
    for path in re.findall(r"`((?:examples|tests|docs|\.ci|\.env)[\w./-]*)`", page.prose):
        assert (ROOT / path).exists(), path


def exported(name):
    """The names of the series of a metric."""
    endings = {"counter": ["_total"], "gauge": [""], "histogram": ["", "_bucket", "_sum", "_count"]}
    return {f"celery_budgets_{name}{ending}" for ending in endings[METRICS[name].kind]}


def test_every_setting_metric_outcome_and_command_is_named():
    """Somewhere, with its mark-up."""
    wanted = [
        *(f"`budgets_{name}`" for name in FIELDS),
        *(f"`celery_budgets_{name}{'_total' if m.kind == 'counter' else ''}`"
          for name, m in METRICS.items()),
        *(f"`{outcome}`" for outcome in Outcome),
        *(f"`{event}`" for event in FACTS.logged()),
        *(f"`{value}`" for name, value in vars(names).items() if name.startswith("EVENT_")),
        *(f"`{name}`" for name in names.RESOURCE_ATTRIBUTES),
        *(f"lanes {name}" for name in lanes.list_commands(click.Context(lanes)) if name != "list"),
    ]  # fmt: skip
    assert [words for words in wanted if words not in ALL] == []


def test_every_log_event_has_a_meaning():
    """And every meaning an event."""
    assert set(FACTS.logged()) == set(FACTS.LOG_EVENTS)
    assert re.findall(r'"(budgets\.[a-z_]+)\b(?!\()', SOURCE)
    unread = set(re.findall(r'"(budgets\.[a-z_]+)\b[ :]', SOURCE)) - set(FACTS.logged())
    assert unread == set(), "an event that the table of the documentation does not find"


def test_every_table_of_the_code_and_every_command_is_on_a_page():
    """Each by its directive; click's own tells all commands, options and arguments."""
    raw = "".join(page.path.read_text() for page in PAGES.values())
    assert set(re.findall(r"^:::\{facts\} (\w+)$", raw, re.MULTILINE)) == set(FACTS.TABLES)
    assert ".. click:: celery_budgets.cli:lanes\n" in raw
    assert ":nested: full" in raw


def test_the_names_of_spans_have_meanings():
    """Every attribute and event, and no other."""
    constants = {name: value for name, value in vars(names).items() if name.isupper()}
    own = {value for value in constants.values() if str(value).startswith("celery_budgets.")}
    assert set(FACTS.ATTRIBUTES) == own
    events = {value for name, value in constants.items() if name.startswith("EVENT_")}
    assert set(FACTS.SPAN_EVENTS) == events


def test_every_public_name_is_on_the_page_of_the_api():
    """By the path under which it is imported."""
    text = PAGES["reference/api.md"].path.read_text()
    told = set(re.findall(r"auto\w+:: celery_budgets\.(\w+)\(?\)?$", text, re.MULTILINE))
    assert told == set(celery_budgets.__all__)
    for path in re.findall(r"auto\w+:: ([\w.]+)", text):
        module, _, name = path.rpartition(".")
        __import__(module)
        assert hasattr(sys.modules[module], name), path


def test_the_four_questions_are_answered_two_clicks_from_the_first_page():
    """One click, in fact: each is a row with a link to a heading of its own."""
    rows = table("Question", "Answer")
    asked = [row[0] for row in rows]
    for question in (
        "My task was killed, why?",
        "How do I set a limit for one task?",
        "How many workers do I need?",
        "What happens when Redis goes down?",
    ):
        (link,) = re.findall(r"\]\((.+)\)", rows[asked.index(question)][1])
        path, _, anchor = link.partition("#")
        assert anchor in PAGES[path].anchors


def test_the_fields_of_a_budget():
    """Every field, and the defaults that are numbers or words."""
    told = {row[0].strip("`"): row[1] for row in table("field", "default", "meaning")}
    assert list(told) == list(BudgetFields.__annotations__)
    budget = Budget()
    assert parse_duration(told["timeout"]) == budget.timeout
    assert float(told["escalation_factor"]) == budget.escalation_factor
    assert parse_size(told["max_rss"]) == budget.max_rss
    assert parse_size(told["rss_warning"]) == budget.rss_warning
    for name in ("soft", "memory", "children"):
        assert told[name].strip('`"') == getattr(budget, name)
    # All but one may stand on a task.
    assert [name for name in told if not hasattr(BudgetedTask, name)] == ["escalation_factor"]


def test_the_fields_of_a_lane():
    """Every argument of its class but name, budget, and the fields of a budget."""
    told = [row[0].strip("`") for row in table("lane field", "default", "meaning")]
    arguments = inspect.signature(Lane).parameters
    assert set(told) == set(arguments) - {"name", "budget", "limits"}


def test_the_outcomes():
    """All of them, in order."""
    rows = table("outcome", "how the call ended", "the caller gets")
    assert [row[0] for row in rows] == [f"`{outcome.value}`" for outcome in Outcome]


def test_the_exit_codes():
    """Those of the code."""
    told = [(row[0], row[1]) for row in table("exit code", "of", "why")]
    assert told == [
        (str(interrupts.EXIT_CODE), "a pool process"),
        (str(replacement.EXIT_CODE), "a worker"),
        (str(abandoned_threads.EXIT_CODE), "a worker"),
        ("1", "a worker"),
    ]


def test_the_reasons_of_a_rejection():
    """The gauges of a gate, by whose names rejections are counted, and the others."""
    names = set(re.findall(r'Gauge\("(\w+)"', inspect.getsource(gauges)))
    assert {row[0].strip("`") for row in table("reason", "what was above its limit")} == names
    codes = [value for name, value in vars(reasons).items() if name.startswith("REASON_")]
    told = table("reason", "the call was not admitted because")
    assert [row[0].strip("`") for row in told] == codes


def test_numbers():
    """Of the code, in words around them that say which ones they are."""
    grace = interrupts.ProcessInterrupt
    prose = " ".join(PROSE.split())
    for words in (
        f"acts {grace.soft_grace:g} s (soft) and {grace.hard_grace:g} s (hard) later",
        f"every {watchdog.TICK:g} s, and up to every {watchdog.FASTEST_TICK:g} s",
        f"within {spans.BATCH_MILLISECONDS / 1000:g} s after a call",
        f"less {broker_limits.MARGIN:g} s",
        f"({broker_limits.KOMBU_VISIBILITY_TIMEOUT:g} s by default)",
        f"(RabbitMQ, {checks.RABBITMQ_CONSUMER_TIMEOUT:g} s)",
        f"({format_size(Budget().hard_rss)}) | the process is killed",
    ):
        assert words in prose, words


def test_symptoms_are_messages_of_the_code():
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


def test_extras_that_are_installed_exist():
    """Names in `celery-budgets[...]`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(re.findall(r"celery-budgets\[(\w+)\]", ALL))
    assert extras <= set(project["optional-dependencies"])


def test_supervised_workers_have_longer_than_a_call_may_last():
    """The systemd template stops a worker warmly.

    For the Deployments see ``tests/unit/examples/test_kubernetes.py``.
    """
    page = PAGES["guides/deploy.md"]
    longest = max(lane.budget.hard_time_limit for lane in DEFAULT_LANES)
    unit = configparser.RawConfigParser()
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(page.of("ini")[0].text)
    assert unit.getfloat("Service", "TimeoutStopSec") > longest
    assert unit.get("Service", "KillMode") == "mixed"


def test_the_diagram_is_that_of_its_text():
    """`python docs/diagrams/draw.py` has been run."""
    draw = script("diagrams/draw.py").draw
    for source in (DOCS / "diagrams").glob("*.txt"):
        assert (DOCS / "_static" / f"{source.stem}.svg").read_text() == draw(source.read_text())


def test_pictures_load_nothing():
    """From anywhere: the documentation can be read offline."""
    for path in (DOCS / "_static").glob("*.svg"):
        assert "url(http" not in path.read_text().replace('"', ""), path


def test_every_module_of_the_architecture_exists():
    """In its tables, by its name below the package."""
    page = PAGES["architecture.md"]
    for name in re.findall(
        r"`((?:model|config|execution|telemetry|sending|tasks|worker)\.[a-z_.]+)`", page.text
    ):
        assert (ROOT / "celery_budgets" / f"{name.replace('.', '/')}.py").exists(), name
