"""The demo's critic: what it finds in sources, and where it is silent."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent

import pytest

from examples.tools import critic, files


def rules_in(directory: Path, source: str | bytes) -> list[tuple[int, str]]:
    """Return line and rule of each finding in *source*."""
    path = directory / "module.py"
    text = dedent(source).lstrip() if isinstance(source, str) else source
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return [(finding.line, finding.rule) for finding in critic.review(str(path))]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import os\nimport sys\nprint(sys)\n", [(1, "unused-import")]),
        ("from a.b import c as d, e\nprint(e)\n", [(1, "unused-import")]),
        ("import os.path\nos.getcwd()\n", []),
        ("try:\n    pass\nexcept:\n    pass\n", [(3, "bare-except")]),
        ("try:\n    pass\nexcept:\n    raise\n", []),
        ("def f(a, b=[]): ...\n", [(1, "mutable-default")]),
        ("def f(*, b=dict()): ...\n", [(1, "mutable-default")]),
        ("f = lambda a={}: a\n", [(1, "mutable-default")]),
        ("def f(a=(), b=None): ...\n", []),
        ("def f(list): ...\n", [(1, "shadowed-builtin")]),
        ("id = 1\n", [(1, "shadowed-builtin")]),
        ("class A:\n    id = 1\n    def list(self): ...\n", []),
        ("def f(x):\n    return x == None\n", [(2, "none-comparison")]),
        ("assert (1, 'message')\n", [(1, "tuple-assertion")]),
        ("def f():\n    return 1\n    f()\n", [(3, "unreachable-code")]),
        ("while f():\n    break\n    g()\n    h()\n", [(3, "unreachable-code")]),
        ("x = {'a': 1, 1: 2, 'a': 3, True: 4}\n", [(1, "repeated-key")]),
        ("x = '\\d'\n", [(1, "syntax-warning")]),
    ],
)
def test_each_rule_reports_its_line(
    tmp_path: Path, source: str, expected: list[tuple[int, str]]
) -> None:
    """A rule finds what it is for, and is silent beside it."""
    assert rules_in(tmp_path, source) == expected


def test_names_used_only_in_strings_count_as_used(tmp_path: Path) -> None:
    """``__all__`` and quoted annotations use a name; a re-export is said by 'as'."""
    source = """
        from __future__ import annotations
        from a import b, Quoted
        from c import d as d
        from e import *
        __all__ = ["b"]
        def f(x: "list[Quoted]"): ...
    """
    assert rules_in(tmp_path, source) == []


def test_long_functions_are_counted_in_lines(tmp_path: Path) -> None:
    """80 lines are enough, and the 81st is one too many."""
    body = "    pass\n"
    assert rules_in(tmp_path, "def f():\n" + body * 79) == []
    assert rules_in(tmp_path, "def f():\n" + body * 80) == [(1, "long-function")]


def test_deep_nesting_is_reported_once_and_elif_is_not_deep(tmp_path: Path) -> None:
    """The fifth block is the finding; those inside it are not; an elif is no block more."""
    chain = "if a: pass\n" + "elif b: pass\n" * 10
    assert rules_in(tmp_path, chain) == []
    deep = "".join("    " * depth + "if a:\n" for depth in range(7)) + "    " * 7 + "pass\n"
    assert rules_in(tmp_path, deep) == [(5, "deep-nesting")]
    inner = "".join("    " * depth + "if a:\n" for depth in range(4)) + "    " * 4
    assert rules_in(tmp_path, inner + "def f():\n" + "    " * 5 + "if a: pass\n") == []


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        (b"def broken(:\n", "syntax-error"),
        (b"x = '\xff'\n", "syntax-error"),
        (b"# coding: nonsense\n", "syntax-error"),
        (b"x = 1\0\n", "syntax-error"),
        (b"x = " + b"-" * 100_000 + b"1\n", "too-complex"),
    ],
)
def test_a_file_that_does_not_parse_is_a_finding(tmp_path: Path, source: bytes, rule: str) -> None:
    """No source makes the critic raise."""
    [(line, found)] = rules_in(tmp_path, source)
    assert line >= 1
    # Python versions differ in which of its errors a hopeless source meets first.
    assert found in {rule, "undecodable", "syntax-error"}


def test_encodings_are_honoured(tmp_path: Path) -> None:
    """A coding comment and a byte order mark are read as Python reads them."""
    assert rules_in(tmp_path, b"# -*- coding: latin-1 -*-\ns = '\xe9'\nimport os\n") == [
        (3, "unused-import")
    ]
    assert rules_in(tmp_path, b"\xef\xbb\xbfimport os\n") == [(1, "unused-import")]


def test_noqa_and_init_are_left_alone(tmp_path: Path) -> None:
    """A line with a noqa comment has no finding, and a package imports for others."""
    assert rules_in(tmp_path, "import os  # noqa: F401\n") == []
    package = tmp_path / "__init__.py"
    package.write_text("from a import b\n")
    assert critic.review(str(package)) == []


def test_the_critic_reads_this_project() -> None:
    """Its own sources have no unused import and no bare except."""
    found = {
        finding.rule
        for path in files.python_files(Path(critic.__file__).parent)
        for finding in critic.review(str(path))
    }
    assert not found & {"unused-import", "bare-except", "mutable-default", "syntax-error"}


def test_report_says_what_was_found(tmp_path: Path) -> None:
    """The report names the file and lists line, message and rule."""
    path = tmp_path / "a.py"
    path.write_text("import os\n")
    reviewed = files.read(str(path)) | {"findings": critic.review(str(path))}
    text = critic.as_markdown(json.loads(json.dumps(reviewed)))
    assert text.startswith(f"# {path}\n\n1 line, 10 bytes, SHA-256 `{reviewed['sha256']}`.\n")
    assert "\n1 finding: 1 unused-import.\n" in text
    assert text.endswith("- line 1: 'os' is imported but not used (unused-import)\n")
