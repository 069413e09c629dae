"""`celery lanes` and `celery lanes list`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_budgets import Budgets, Lane
from celery_budgets.cli import COMMANDS, lanes


def run(app: Celery, *arguments: str):
    """Run `celery lanes ARGUMENTS` for *app*, as Celery's own group would."""
    context = CLIContext(app, no_color=True, workdir=None)
    return CliRunner().invoke(lanes, arguments, obj=context)


@pytest.fixture
def app() -> Celery:
    made = Celery("list", set_as_current=False)
    Budgets(made, lanes=[
        Lane("quick", 6, tools=["fs_*", "pid"]),
        Lane("slow", 2, queue="slow.work", timeout="10m", max_rss="2GiB", idempotent=False),
    ])  # fmt: skip
    return made


@pytest.mark.parametrize("arguments", [[], ["list"]])
def test_a_row_for_each_lane(app, arguments):
    """Alone, the group lists; limits are in units for people."""
    result = run(app, *arguments)
    assert result.exit_code == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.output.splitlines()]
    assert [row for row in rows if row] == [
        ["quick", "quick", "6", "300 s", "450 s", "400 MiB", "512 MiB",
         "fs_*, pid, everything else"],
        ["slow", "slow.work", "2", "600 s", "900 s", "1.562 GiB", "2 GiB", "none"],
    ]  # fmt: skip
    assert "concurrency 8 of 32" in result.output


def test_json_is_in_base_units(app):
    """Seconds and bytes, for programs."""
    quick, slow = json.loads(run(app, "list", "--json").output)
    assert (quick["default"], slow["default"]) == (True, False)
    assert quick["tools"] == ["fs_*", "pid"]
    # 600 s x 1.5; 2 GiB x 400/512
    assert slow == {
        "lane": "slow",
        "queue": "slow.work",
        "concurrency": 2,
        "soft_time_limit": 600.0,
        "hard_time_limit": 900.0,
        "rss_warning": 2 * 1024**3 * 400 // 512,
        "max_rss": 2 * 1024**3,
        "idempotent": False,
        "default": False,
        "tools": [],
    }


def test_an_app_that_declares_nothing_has_the_five_lanes():
    """Listing changes nothing on the app."""
    app = Celery("bare", set_as_current=False)
    listed = json.loads(run(app, "list", "--json").output)
    assert [(lane["lane"], lane["concurrency"]) for lane in listed] == [
        ("tool_call", 8),
        ("file_read", 16),
        ("file_write", 4),
        ("critic", 3),
        ("forecast_model", 1),
    ]
    assert app.conf.task_queues is None


def test_a_lanes_name_is_not_read_as_markup(app):
    """A tool's glob may look like a style of the table's: [red]."""
    Budgets(app, lanes=[Lane("quick", 1, tools=["[red]*"])])
    assert "[red]*" in run(app, "list").output


def test_a_wrong_configuration_is_one_message_and_code_1():
    """All problems, no traceback."""
    app = Celery("wrong", set_as_current=False)
    app.conf.budgets_timeout = "soon"
    app.conf.budgets_laness = {}
    result = run(app, "list")
    assert result.exit_code == 1
    assert result.output.startswith("Error: 2 problems in the configuration:\n  - ")
    assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_every_help_ends_its_text_with_examples_that_parse(app, arguments):
    """Each example names a command and options that there are."""
    result = run(app, *arguments)
    assert result.exit_code == 0
    examples = [line.strip() for line in result.output.splitlines() if "$ celery -A tools" in line]
    assert len(examples) >= 2, result.output
    for example in examples:
        words = example.removeprefix("$ celery -A tools lanes").split()
        words = words[: words.index("--")] if "--" in words else words
        if words:
            command = lanes.get_command(None, words[0])
            assert command is not None, example
            with command.make_context(words[0], words[1:], obj=None, resilient_parsing=False):
                pass


def test_a_misspelled_command_gets_a_hint(app):
    """As everywhere in Celery's command line."""
    result = run(app, "lits")
    assert result.exit_code == 2
    assert "list" in result.output


def test_the_entry_point_adds_lanes_to_celery():
    """`celery lanes` is there without any option of the user's, and loads no table for it."""
    code = (
        "import sys; from celery.bin.celery import celery; "
        "assert 'lanes' in celery.commands; "
        "assert not [name for name in sys.modules if name.startswith('celery_budgets.cli.')]; "
        "assert 'rich' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


#: Modules of the worker that name its commands to the command line; they import no other.
NAMING = {
    "celery_budgets.worker", "celery_budgets.worker.remote",
    "celery_budgets.worker.remote.commands", "celery_budgets.worker.remote.lane_commands",
    "celery_budgets.worker.remote.drain", "celery_budgets.worker.remote.health",
    "celery_budgets.worker.remote.history",
    "celery_budgets.worker.remote.stacks", "celery_budgets.worker.remote.why",
}  # fmt: skip


@pytest.mark.parametrize("arguments", [["--help"], ["-A", "tests.worker.plain_app", "report"]])
def test_a_command_that_touches_no_worker_imports_none(arguments):
    """Every `celery` pays for what the entry point imports."""
    code = (
        "import atexit, sys; "
        "atexit.register(lambda: print(*(n for n in sys.modules if n.startswith('celery_budgets')),"
        " file=sys.stderr)); "
        "from celery.bin.celery import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    ours = set(done.stderr.splitlines()[-1].split())
    assert {name for name in ours if name.startswith("celery_budgets.worker")} == NAMING
    assert len(ours) < 60, sorted(ours)


def test_inspect_knows_the_command():
    """`celery inspect --list` names what a worker answers to."""
    done = subprocess.run(
        [sys.executable, "-m", "celery", "inspect", "--list"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "budgets" in done.stdout
