"""What the documentation says is so: its commands are run as they stand, and its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from formgate_server.settings import Settings
from tests.support.quick import quick_command
from tests.support.server import Server
from tests.support.typed import Renamed, free_port, type_into_shell, typed, without_varying

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
EXAMPLE = ROOT / "examples" / "ask_formgate.py"
OPERATIONS = ROOT / "docs" / "operations" / "embedded.md"
YOUR_OWN = ROOT / "docs" / "platforms" / "your-own.md"
PAGES = sorted(
    page
    for folder in (ROOT, ROOT / "docs", ROOT / "clients" / "python")
    for page in (folder.glob("*.md") if folder == ROOT else folder.rglob("*.md"))
)

_SERVED = re.compile(r"^```sh\nformgate serve (.*?)\n```$", re.MULTILINE)
_PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TOML = re.compile(r"^```toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
TYPED = [page for page in PAGES if any(typed(page))]
"""Every page that shows commands with what they print."""
THREE_SERVICES = ROOT / "docs" / "guides" / "three-services.md"
"""One that needs more than a server: tests/integration/test_examples.py types it."""


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a command that need not import everything each time it is typed."""
    with quick_command(tmp_path_factory.mktemp("quick") / "bin") as folder:
        yield folder


@pytest.mark.parametrize("folder", ["guides", "platforms"])
def test_every_guide_and_platform_is_typed(folder: str) -> None:
    """No page of these is words only."""
    pages = set((ROOT / "docs" / folder).glob("*.md"))
    assert pages
    assert pages <= set(TYPED)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", [page for page in TYPED if page != THREE_SERVICES], ids=lambda page: page.name)
def test_what_a_page_shows_is_what_its_commands_print(
    page: Path, command: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Typed as they stand against a fresh server, a page's commands print what it shows, but for ids and times.

    A page that says to serve with certain options gets a server with those.
    """
    monkeypatch.chdir(ROOT)
    lines = list(typed(page))
    port = free_port()  # of the service that a page starts
    renamed = Renamed({"127.0.0.1:8000": f"127.0.0.1:{port}", "--port 8000": f"--port {port}"})
    options = [option for line in _SERVED.findall(page.read_text(encoding="utf-8")) for option in shlex.split(line)]
    with Server(tmp_path, *options) as server:
        environment = server.environment | {
            "FORMGATE_ADDRESS": server.address,  # the page's server has the ports and folder that serve has by itself
            "FORMGATE_DATA": str(server.data),
            "TMPDIR": str(server.folder),
        }
        printed = type_into_shell([renamed.here(each) for each, _ in lines], environment, command)
    assert len(printed) == len(lines)
    for (line, shown), output in zip(lines, printed, strict=True):
        assert without_varying(renamed.shown(output)) == without_varying(shown), f"$ {line}"


def test_the_ready_line_is_the_servers(tmp_path: Path) -> None:
    """The README shows the line that the server prints, with the addresses and the folder that it has by itself."""
    with Server(tmp_path) as server:
        ready = server.stdout.read_text(encoding="utf-8")
    settings = Settings.model_fields
    for mine, usual in ((server.address, "listen"), (server.http, "http"), (str(server.data), "data")):
        ready = ready.replace(mine, str(settings[usual].default))
    assert f"```text\n{ready}```" in README.read_text(encoding="utf-8")


def test_the_python_caller_is_the_example() -> None:
    """The README's Python is the file that its commands run."""
    assert _PYTHON.findall(README.read_text(encoding="utf-8")) == [EXAMPLE.read_text(encoding="utf-8")]


@pytest.mark.parametrize(("page", "example"), [("guides/protect-a-route.md", "protect.py")])
def test_the_python_of_a_guide_is_the_example(page: str, example: str) -> None:
    """The Python that a guide shows is the file that its commands run."""
    shown = _PYTHON.findall((ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert shown == [(ROOT / "examples" / example).read_text(encoding="utf-8")]


def test_the_python_of_a_page_runs() -> None:
    """What the page on testing shows is a test that passes."""
    (code,) = _PYTHON.findall((ROOT / "docs" / "client" / "testing.md").read_text(encoding="utf-8"))
    exec(compile(code, "testing.md", "exec"), {})


def test_the_policy_that_is_shown_is_the_file() -> None:
    """The page on a platform of one's own shows the file that its server reads."""
    shown = YOUR_OWN.with_name("pollster.toml").read_text(encoding="utf-8")
    assert _TOML.findall(YOUR_OWN.read_text(encoding="utf-8")) == [shown]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page names a file or folder, and a heading of it where it names one."""
    for target in _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = map(_anchor, _HEADING.findall(file.read_text(encoding="utf-8")))
            assert anchor in headings, target


def _anchor(heading: str) -> str:
    """Return the fragment that readers of Markdown give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [README, ROOT / "docs" / "architecture.md"], ids=lambda page: page.name)
def test_files_that_are_named_are_there(page: Path) -> None:
    """Every Python, proto or TOML file that a page names between backticks or as a link's text exists."""
    roots = [
        ROOT,
        ROOT / "service" / "formgate_server",
        ROOT / "clients" / "python" / "src" / "formgate",
        ROOT / "protos" / "formgate" / "v1",
        *(ROOT / "service" / "formgate_server" / name for name in ("core", "rpc", "storage", "storage/sql")),
    ]
    text = _CODE.sub("", page.read_text(encoding="utf-8"))
    named = set(re.findall(r"[`\[]([\w./]+\.(?:py|proto|toml))[`\]]", text))
    assert named
    assert [name for name in sorted(named) if not any((root / name).exists() for root in roots)] == []


def test_every_setting_is_explained_with_its_default() -> None:
    """The table of settings has every setting by its variable, with the default that it really has, and no other."""
    rows = re.findall(r"^\| `(FORMGATE_\w+)` \| (\S+) \| (.*?) \|", OPERATIONS.read_text("utf-8"), re.MULTILINE)
    shown = {variable: (option, default) for variable, option, default in rows}
    real = {
        f"FORMGATE_{name.upper()}": (
            "none" if name.endswith("_url") else f"`--{name.replace('_', '-')}`",  # a URL holds a password
            _written(field.default),
        )
        for name, field in Settings.model_fields.items()
    }
    assert shown == real


def _written(default: object) -> str:
    if default is None:
        return "none"
    if isinstance(default, bool):
        return "`true`" if default else "`false`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
