"""Which service token is shown, and to whom."""

from pathlib import Path

import pytest

from formgate_server.cli.credentials import find_token, is_loopback
from formgate_server.cli.errors import CommandError, ExitCode

HERE = "127.0.0.1:50051"
AWAY = "formgate.example:443"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, with a token of every kind; the first that is named wins."""
    for name in ("option", "variable"):
        (tmp_path / name).write_text(f"fgt_{name}\n")
    for name in ("formgate-data", "option-data", "variable-data"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manager.token").write_text(f"fgt_{name}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_place_that_is_named_wins(folder: Path) -> None:
    """Options before the environment, and what was said before what lies about."""
    environment = {"FORMGATE_TOKEN": "fgt_value", "FORMGATE_TOKEN_FILE": "variable", "FORMGATE_DATA": "variable-data"}
    assert find_token(Path("option"), Path("option-data"), AWAY, environment).value == "fgt_option"
    assert find_token(None, Path("option-data"), AWAY, environment).value == "fgt_option-data"
    assert find_token(None, None, AWAY, environment).value == "fgt_value"
    del environment["FORMGATE_TOKEN"]
    assert find_token(None, None, AWAY, environment).value == "fgt_variable"
    del environment["FORMGATE_TOKEN_FILE"]
    assert find_token(None, None, AWAY, environment).value == "fgt_variable-data"
    assert find_token(None, None, HERE, {}).value == "fgt_formgate-data"


def test_a_token_that_lies_about_is_for_this_machine_only(folder: Path) -> None:
    """Nobody has said that a server elsewhere should get the manager's token of this one."""
    with pytest.raises(CommandError, match=r"no token for formgate\.example:443"):
        find_token(None, None, AWAY, {})


@pytest.mark.parametrize("content", ["", "\n", "two words", "zwei\nzeilen", "t\xf6ken", "a\x00b"])
def test_what_can_not_be_a_token_is_not_sent(tmp_path: Path, content: str) -> None:
    """It is refused by the name of its file, and not repeated."""
    file = tmp_path / "token"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(CommandError, match="token") as caught:
        find_token(file, None, HERE, {})
    assert caught.value.code is ExitCode.USAGE
    assert str(file) in caught.value.message
    assert not content.strip() or content.strip() not in caught.value.message


def test_no_token_says_where_one_may_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing anywhere, the hint names every place."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CommandError, match=r"there is no formgate-data/manager\.token here") as caught:
        find_token(None, None, HERE, {})
    for place in ("--token-file", "FORMGATE_TOKEN", "FORMGATE_TOKEN_FILE", "--data"):
        assert place in caught.value.hint


def test_a_token_is_not_in_its_repr(folder: Path) -> None:
    """It does not come to stand in a log or a traceback by accident."""
    assert "fgt_option" not in repr(find_token(Path("option"), None, HERE, {})).replace("'option'", "")


@pytest.mark.parametrize(
    ("address", "answer"),
    [
        ("127.0.0.1:1", True), ("127.9.9.9:1", True), ("[::1]:1", True), ("localhost:1", True), ("10.0.0.1:1", False),
        ("0.0.0.0:1", False), ("localhost.evil.example:1", False), ("127.0.0.1.evil.example:1", False), ("", False),
    ],
)  # fmt: skip
def test_what_is_this_machine(address: str, answer: object) -> None:
    """By the address itself, not by what a name may resolve to."""
    assert is_loopback(address) is answer
