"""The reader of policy files: what each field takes, and what is said of one that it does not take."""

from __future__ import annotations

import json
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from formgate.rules.grants import EVERYTHING, Grant, Level
from formgate.rules.reason import Reason
from formgate_server.core.model import Calendar, Environment, Holder, Lifetime, Limit, Period, Role, Rolling
from formgate_server.core.policy import AddressKinds, Policy
from formgate_server.policies.policy import PolicyError, _parse, load
from formgate_server.policies.toml_file import Source

BUNDLED = ("default", "formbricks", "jodoo", "jotform", "proforms", "siteplot")
EXAMPLES = settings().max_examples

# One field a line, so that each can be replaced by another value: {field: value}.
TOP = {
    "name": '"tiny"',
    "description": '"Keys that authenticate."',
    "prefixes": '{ LIVE = "tiny_", TEST = "tiny-t_" }',
    "open_catalogue": "true",
    "levels": '{ READ = "Viewer", WRITE = "Editor", MANAGE = "Owner" }',
    "methods": '{ GET = "READ", "*" = "MANAGE" }',
    "api_groups": '["a"]',
    "usage_tags": '["t"]',
    "longest_lease": '"500ms"',
}
TABLES = {
    "permissions": {'"forms.view"': '"READ"'},
    "keys": {
        "most": "1",
        "creators": '["MEMBER"]',
        "created_by": '"required"',
        "ungranted": '"WRITE"',
        "capped": "true",
        "recoverable": "true",
        "delete_only_disabled": "true",
        "ip_rules": "{ most = 0, blocks = false, wildcards = false, ipv6 = false }",
    },
    "plans.one": {
        "time_zone": '"Europe/Vienna"',
        "limits": '[{ name = "rate", holder = "KEY", amount = 1, window = "1m", most = 2 }]',
    },
    "denial": {
        "status": "400",
        "title": '"t"',
        "message": '"m"',
        "headers": '[["x-a", "{reason}"]]',
        "body": '"{title}"',
    },
    "denials.KEY_EXPIRED": {"status": "599", "body": '""'},
}


def written(changes: dict[str, str | None]) -> str:
    """Write a policy with fields, named by their path, that have other values; None: left out."""
    lines = [f"{name} = {value}" for name, value in _changed("", TOP, changes).items()]
    for table, own in TABLES.items():
        lines += [f"[{table}]", *(f"{name} = {value}" for name, value in _changed(f"{table}.", own, changes).items())]
    return "\n".join(lines)


def _changed(prefix: str, own: dict[str, str], changes: dict[str, str | None]) -> dict[str, str]:
    mine = {path.removeprefix(prefix): value for path, value in changes.items() if path.startswith(prefix)}
    others = tuple(f"{table}." for table in TABLES)
    if not prefix:
        mine = {path: value for path, value in mine.items() if not path.startswith(others)}
    return {name: value for name, value in (own | mine).items() if value is not None}


def parsed(changes: dict[str, str | None] | None = None) -> Policy:
    """Read such a policy."""
    return _parse(Source("tiny.toml", written(changes or {}), PolicyError))


def refusal(text: str) -> str:
    """Return what is said of a policy that is refused."""
    with pytest.raises(PolicyError) as caught:
        _parse(Source("tiny.toml", text, PolicyError))
    return str(caught.value)


def policy_or_refusal(text: str) -> Policy | str:
    """Return the policy, or what is said of one that is refused."""
    try:
        return _parse(Source("tiny.toml", text, PolicyError))
    except PolicyError as error:
        return str(error)


def test_every_field() -> None:
    """Every field is read as it is written."""
    policy = parsed()
    assert (policy.name, policy.description) == ("tiny", "Keys that authenticate.")
    assert policy.prefixes == {Environment.LIVE: "tiny_", Environment.TEST: "tiny-t_"}
    assert policy.catalogue.is_open
    assert policy.catalogue.levels == {"forms.view": Level.READ}
    assert policy.levels == {Level.READ: "Viewer", Level.WRITE: "Editor", Level.MANAGE: "Owner"}
    assert policy.methods == {"GET": Level.READ, "*": Level.MANAGE}
    assert (policy.api_groups, policy.usage_tags) == (frozenset({"a"}), ("t",))
    assert policy.longest_lease == 500_000
    keys = policy.keys
    assert (keys.most, keys.creators, keys.needs_creator) == (1, frozenset({Role.MEMBER}), True)
    assert keys.ungranted == (Grant(EVERYTHING, (), Level.WRITE),)
    assert keys.capped
    assert keys.recoverable
    assert keys.delete_only_disabled
    assert keys.addresses == AddressKinds(most=0, blocks=False, wildcards=False, ipv6=False)
    plan = policy.plans["one"]
    assert (plan.time_zone, plan.most) == ("Europe/Vienna", {"rate": 2})
    assert plan.limits == (Limit("rate", Holder.KEY, 1, Rolling(60_000_000)),)
    usual, special = policy.denials[Reason.RATE_LIMITED], policy.denials[Reason.KEY_EXPIRED]
    assert (usual.status, usual.title, usual.message, usual.body) == (400, "t", "m", "{title}")
    assert usual.headers == special.headers == (("x-a", "{reason}"),)
    assert (special.status, special.title, special.body) == (599, "t", "")


def test_the_least() -> None:
    """What is not said has the default that the manual tells."""
    needed = {"name", "description", "prefixes"}
    text = "\n".join(f"{name} = {TOP[name]}" for name in needed) + '\n[plans.one]\ntime_zone = "UTC"'
    policy = _parse(Source("tiny.toml", text, PolicyError))
    assert not policy.catalogue.levels
    assert not policy.catalogue.is_open
    assert (policy.levels, policy.methods, policy.api_groups, policy.usage_tags) == ({}, {}, None, ())
    keys = policy.keys
    assert (keys.most, keys.creators, keys.needs_creator, keys.ungranted) == (None, frozenset(), False, ())
    assert (keys.capped, keys.recoverable, keys.delete_only_disabled) == (False, False, False)
    assert keys.addresses == AddressKinds(1_000)
    assert policy.first_plan.limits == ()
    assert {reason: denial.status for reason, denial in policy.denials.items()} == {
        reason: 429
        if reason >= Reason.RATE_LIMITED or reason is Reason.TOO_MANY_INVALID_ATTEMPTS
        else 403
        if reason >= Reason.ACCOUNT_SUSPENDED
        else 401
        for reason in Reason
        if reason is not Reason.OK
    }


@pytest.mark.parametrize(
    ("limit", "per"),
    [
        ('window = "1ms"', Rolling(1_000)),
        ('window = "90s"', Rolling(90_000_000)),
        ('window = "2h"', Rolling(7_200_000_000)),
        ('window = "366d"', Rolling(366 * 86_400_000_000)),
        ('calendar = "DAY"', Calendar(Period.DAY)),
        ('calendar = "MONTH"', Calendar(Period.MONTH)),
        ("lifetime = true", Lifetime()),
    ],
)
def test_limits(limit: str, per: object) -> None:
    """A limit is per a window, a calendar period, or for ever; without an amount it is unlimited."""
    plan = parsed({"plans.one.limits": f'[{{ name = "l", holder = "ACCOUNT", {limit} }}]'}).first_plan
    assert [(each.amount, each.per) for each in plan.limits] == [(None, per)]


@pytest.mark.parametrize(
    ("field", "values"),
    {
        "name": ['""', '"A"', '"1a"', '"a b"', '"a\\n"', f'"{"a" * 65}"', "1", "1979-05-27", "[]", None],
        "description": ['""', '"a\\nb"', '"\\u007f"', f'"{"a" * 501}"', "1", "true", "1979-05-27", "07:32:00", None],
        "prefixes": ["{}", "[]", '{ DEV = "a_" }', '{ live = "a_" }', '{ LIVE = "" }', "1", None],
        "prefixes.LIVE": ['"_"', '"a"', '"a b_"', '"a\\n_"', '"a_\\n"', '"ä_"', f'"{"a" * 32}_"', "1"],
        "open_catalogue": ['"true"', "1", "0"],
        "levels": ['{ READ = "" }', '{ ALL = "x" }', "{ READ = 1 }", '["READ"]', '{ READ = "a\\tb" }'],
        "methods": ['{ get = "READ" }', '{ GET = "ALL" }', '{ "" = "READ" }', '{ "G T" = "READ" }', '{ GET = "NONE" }'],
        "api_groups": ['[""]', '["a b"]', '"a"', "[1]", '[".a"]', "{}"],
        "usage_tags": ['["a", "b", "c", "d"]', '["a b"]', '"a"'],
        "longest_lease": ['"0s"', '"11s"', '"1m"', "1", '"-1s"', '""'],
        "colour": ['"red"', "{}"],
        'permissions."forms.view"': ['"ALL"', "1", '""', '"read"'],
        "permissions.forms": ['"READ"'],
        'permissions."Forms.view"': ['"READ"'],
        'permissions."forms.*"': ['"READ"'],
        'permissions."a.b.c.d.e"': ['"READ"'],
        "keys.most": ["0", "-1", '"1"', "1.0", "true"],
        "keys.creators": ['["OWNER"]', '"ADMIN"', "[1]"],
        "keys.created_by": ['"never"', "true"],
        "keys.ungranted": ['"ALL"', '"creator"', "true"],
        "keys.capped": ['"yes"', "1"],
        "keys.recoverable": ['"yes"', "1"],
        "keys.delete_only_disabled": ['"yes"', "1"],
        "keys.ip_rules": ["{ most = -1 }", "{ most = 1001 }", "{ ipv4 = false }", "[]", "{ ipv6 = 1 }"],
        "keys.colour": ['"red"'],
        "plans.one.time_zone": ['"Vienna"', '""', '"../etc/passwd"', "1", None],
        "plans.one.colour": ['"red"'],
        "denial.status": ["200", "302", "399", "600", '"429"', "429.0"],
        "denial.title": ['""', '"a\\nb"', "1"],
        "denial.message": ['""', '"a\\u0000b"', f'"{"m" * 501}"'],
        "denial.body": ['"{nothing}"', "1", '"{retry-after} {retryafter}"', "{}"],
        "denial.colour": ['"red"'],
    }.items(),
)
def test_invalid_values(field: str, values: list[str | None]) -> None:
    """What a field does not take is refused with the file, the line and the field."""
    for value in values:
        text = written({field.replace("prefixes.LIVE", "prefixes"): value})
        if field == "prefixes.LIVE":
            text = written({"prefixes": f"{{ LIVE = {value} }}"})
        said = refusal(text)
        told = re.fullmatch(r"tiny\.toml:(\d+): ([^:]+): (.+)", said, re.DOTALL)
        assert told, said
        assert told[2].startswith(field.replace('"', "")), (said, value)
        line = text.splitlines()[int(told[1]) - 1]
        if value is not None:
            leaf = field.removeprefix("prefixes.").rpartition(".")[2] if '"' not in field else field.split(".", 1)[1]
            assert line.startswith(("prefixes" if "prefixes" in field else leaf, "[")), (said, line)


@pytest.mark.parametrize(
    ("limit", "field"),
    [
        ('holder = "KEY", window = "1m"', "0.name"),
        ('name = "a b", holder = "KEY", window = "1m"', "0.name"),
        ('name = "a", window = "1m"', "0.holder"),
        ('name = "a", holder = "USER", window = "1m"', "0.holder"),
        ('name = "a", holder = "KEY"', "0"),
        ('name = "a", holder = "KEY", window = "1m", lifetime = true', "0"),
        ('name = "a", holder = "KEY", lifetime = false', "0.lifetime"),
        ('name = "a", holder = "KEY", window = "1"', "0.window"),
        ('name = "a", holder = "KEY", window = "0s"', "0.window"),
        ('name = "a", holder = "KEY", window = "01s"', "0.window"),
        ('name = "a", holder = "KEY", window = "1.5s"', "0.window"),
        ('name = "a", holder = "KEY", window = "-1s"', "0.window"),
        ('name = "a", holder = "KEY", window = "1w"', "0.window"),
        ('name = "a", holder = "KEY", window = "367d"', "0.window"),
        ('name = "a", holder = "KEY", calendar = "YEAR"', "0.calendar"),
        ('name = "a", holder = "KEY", amount = -1, lifetime = true', "0.amount"),
        ('name = "a", holder = "KEY", amount = 9223372036854775808, lifetime = true', "0.amount"),
        ('name = "a", holder = "KEY", amount = 1.5, lifetime = true', "0.amount"),
        ('name = "a", holder = "KEY", amount = 2, most = 1, lifetime = true', "0"),
        ('name = "a", holder = "KEY", most = 1, lifetime = true', "0"),
        ('name = "a", holder = "ACCOUNT", amount = 1, most = 1, lifetime = true', "0"),
        ('name = "a", holder = "KEY", lifetime = true }, { name = "a", holder = "ACCOUNT", lifetime = true', ""),
    ],
)
def test_invalid_limits(limit: str, field: str) -> None:
    """A limit that is none is refused, naming its field."""
    said = refusal(written({"plans.one.limits": f"[{{ {limit} }}]"}))
    assert re.match(rf"tiny\.toml:\d+: plans\.one\.limits\.?{re.escape(field)}: ", said), said


@pytest.mark.parametrize(
    "header",
    [
        ["X-A", "upper case"],
        ["", "a"],
        ["a b", "a"],
        ["a:", "a"],
        ["a\r\nb", "a"],
        ["a", ""],
        ["a", " a"],
        ["a", "a "],
        ["a", "a\r\nx-injected: 1"],
        ["a", "a\n"],
        ["a", "a\rb"],
        ["a", "a\x00b"],
        ["a", "a\tb"],
        ["a", "ä"],
        ["a", "a\u2028b"],
        ["a", "{title}"],
        ["a", "{message}"],
        ["a", "{unknown}"],
        ["{title}", "a"],
        ["a"],
        ["a", "b", "c"],
    ],
)
def test_no_header_can_be_injected(header: list[str]) -> None:
    """A header is a lower case name and printable ASCII; only what can hold no line break is put into it."""
    said = refusal(written({"denial.headers": json.dumps([header])}))
    assert re.match(r"tiny\.toml:\d+: denial\.headers", said), said


@given(st.text(max_size=200), st.text(max_size=200), st.sampled_from(Reason), st.none() | st.integers(0, 2**63))
@settings(max_examples=EXAMPLES)
def test_what_is_put_into_a_body_is_escaped(title: str, message: str, reason: Reason, retry: int | None) -> None:
    """Whatever title and message hold, the body stays the JSON that the template is, and nothing is put in twice."""
    policy = parsed({"denial.body": json.dumps('{"t": "{title}", "m": "{message}", "r": "{reason}{retry_after}"}')})
    template = policy.denials[Reason.RATE_LIMITED]
    worded = type(template)(429, title, message, template.headers, template.body).render(reason, retry)
    seconds = "" if retry is None else str(-(-retry // 1_000_000))
    assert json.loads(worded.body) == {"t": title, "m": message, "r": reason.name + seconds}
    for name, value in worded.headers:
        assert re.fullmatch(r"[\x21-\x7e]+", name + value)


def test_reasons() -> None:
    """Only reasons to deny can be worded."""
    for name in ("OK", "KEY_LOST", "key_expired", ""):
        said = refusal(written({}) + f'\n[denials."{name}"]\nstatus = 400')
        assert ": denials: " in said


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"levels": None}, "tiny.toml:5: methods.GET: READ"),
        ({"levels": '{ READ = "Viewer", WRITE = "Editor" }'}, "tiny.toml:6: methods.*: MANAGE"),
        ({"levels": '{ READ = "Viewer", MANAGE = "Owner" }'}, "tiny.toml:16: keys.ungranted: WRITE"),
        ({"levels": None, "methods": None}, "tiny.toml:14: keys.ungranted: WRITE"),
    ],
)
def test_a_level_that_is_not_offered(changes: dict[str, str | None], told: str) -> None:
    """Neither a method nor a key without grants can need or have a level that no key may be given."""
    assert refusal(written(changes)).startswith(f"{told} is none of the levels that the policy offers")


def test_levels_that_nothing_names() -> None:
    """A policy may offer more than methods need, or none where nothing needs one."""
    assert parsed({"methods": '{ GET = "READ" }', "keys.ungranted": '"CREATOR"'}).methods == {"GET": Level.READ}
    assert parsed({"levels": None, "methods": None, "keys.ungranted": '"NOTHING"'}).levels == {}


def test_creators_need_a_creator() -> None:
    """What looks at the creator needs one named."""
    for given_ in ({"keys.creators": "[]"}, {"keys.capped": "false"}):
        said = refusal(written({"keys.created_by": None, **given_}))
        assert re.match(r"tiny\.toml:\d+: keys: creators and capped need", said), said


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name", "tiny.toml:1: the file: is not TOML: "),
        ("a = 1\nb = \nc = 2", "tiny.toml:2: the file: is not TOML: "),
        ("a = 1\na = 2", "tiny.toml:2: the file: is not TOML: "),
        ("a = 1\nb = [", "tiny.toml:2: the file: is not TOML: "),
        ("a = " + "1" * 5_000, "tiny.toml:1: the file: holds a number too long"),
        ("a = 0x" + "f" * 5_000, "tiny.toml:1: the file: holds a number too long"),
        ("a = " + "[" * 100_000, "tiny.toml:1: the file: "),
        ("", "tiny.toml:1: name: "),
        ("a = nan", "tiny.toml:1: name: "),
    ],
)
def test_what_is_no_policy(text: str, told: str) -> None:
    """What is not TOML, or can not be read, is said to be so with its line."""
    assert refusal(text).startswith(told)


_WORDS = sorted({word for name in BUNDLED for word in (resources.files("formgate_server.policies") / f"{name}.toml")
                 .read_text(encoding="utf-8").split()})  # fmt: skip
_LINES = sorted({*written({}).splitlines(), "", "[keys]", "[[plans]]", "x = 1979-05-27", "y = nan", "[denials.OK]"})


@given(
    st.one_of(
        st.text(max_size=80),
        st.lists(st.sampled_from(_LINES), max_size=40).map("\n".join),
        st.lists(st.sampled_from(_WORDS) | st.sampled_from(list("={}[]\"'\n")), max_size=40).map(" ".join),
        st.tuples(st.integers(0, 2_000), st.integers(0, 9), st.text(max_size=5)).map(
            lambda cut: written({})[: cut[0]] + cut[2] + written({})[cut[0] + cut[1] :]
        ),
    )
)
@example("a = 1979-02-30")
@example('"\\ud800" = 1')
@settings(max_examples=3 * EXAMPLES)
def test_anything(text: str) -> None:
    """Anything at all is a policy, or a PolicyError that says the file, the line and the field."""
    told = policy_or_refusal(text)
    if isinstance(told, Policy):
        assert tomllib.loads(text)["name"] == told.name
    else:
        assert re.match(r"tiny\.toml:[1-9]\d*: [^\n]*: ", told)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*TOP, "LIVE", "limits", "most"]), inner, max_size=4)
), max_leaves=12), st.sampled_from([*TOP, "permissions", "keys", "plans", "denial", "denials"]))  # fmt: skip
@settings(max_examples=EXAMPLES)
def test_any_value_of_a_field(value: Any, field: str) -> None:
    """Whatever value a field has, the file is a policy or a PolicyError."""
    lines = [line for line in written({}).splitlines()[: len(TOP)] if not line.startswith(field)]
    plans = [] if field == "plans" else ["[plans.one]", "time_zone = 'UTC'"]
    told = policy_or_refusal("\n".join([*lines, f"{field} = {_toml(value)}", *plans]))
    assert isinstance(told, Policy) or re.match(r"tiny\.toml:[1-9]\d*: [^\n]*: ", told)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {_toml(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)


def test_the_bundled_policies() -> None:
    """There are six; one of them is the default."""
    policies = load()
    assert tuple(sorted(policies.by_name)) == BUNDLED
    assert policies.default == "default"
    assert len(policies.by_prefix) == sum(len(policy.prefixes) for policy in policies.by_name.values())


def write(folder: Path, name: str, changes: dict[str, str | None]) -> None:
    """Write a policy file."""
    (folder / name).write_text(written(changes), encoding="utf-8")


def test_a_folder(tmp_path: Path) -> None:
    """Every .toml of a folder is read besides the bundled ones, and nothing else of it."""
    write(tmp_path, "tiny.toml", {})
    (tmp_path / "notes.txt").write_text("no policy")
    assert sorted(load(tmp_path).by_name) == sorted([*BUNDLED, "tiny"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prefixes": '{ LIVE = "b_" }'}, "b.toml:1: name: there is another policy named tiny"),
        ({"name": '"b"'}, "b.toml:3: prefixes.LIVE: tiny_ is also a prefix of policy tiny"),
        ({"name": '"b"', "prefixes": '{ TEST = "tiny_" }'}, "b.toml:3: prefixes.TEST: tiny_ is also a prefix of "),
        ({"name": '"jodoo"', "prefixes": '{ LIVE = "b_" }'}, "b.toml:1: name: there is another policy named jodoo"),
        ({"name": '"b"', "prefixes": '{ LIVE = "jd_" }'}, "b.toml:3: prefixes.LIVE: jd_ is also a prefix of "),
        ({"name": '"b"', "prefixes": '{ LIVE = "b_", TEST = "b_" }'}, "b.toml:3: prefixes.TEST: b_ is also a "),
    ],
)
def test_two_with_one_name_or_prefix(tmp_path: Path, changes: dict[str, str | None], told: str) -> None:
    """Two policies with one name or prefix are refused, with the file, line and field of the later."""
    write(tmp_path, "a.toml", {})
    write(tmp_path, "b.toml", changes)
    with pytest.raises(PolicyError, match=re.escape(f"{tmp_path}/{told}")):
        load(tmp_path)


def test_what_can_not_be_read(tmp_path: Path) -> None:
    """A folder that is none, and a file that is no text, are said to be so."""
    with pytest.raises(PolicyError, match="is not a folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(PolicyError, match=r"a\.toml: can not be read"):
        load(tmp_path)
    (tmp_path / "a.toml").unlink()
    (tmp_path / "a.toml").mkdir()
    with pytest.raises(PolicyError, match=r"a\.toml: can not be read"):
        load(tmp_path)
