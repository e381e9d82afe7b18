"""What can be seen on this machine, without asking anybody: settings, files, policies, certificates."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

from formgate_server.core.policy import Policies
from formgate_server.doctor.findings import Finding, fail, ok, warn
from formgate_server.policies import identities
from formgate_server.policies.policy import PolicyError, load
from formgate_server.policies.toml_file import TomlError
from formgate_server.settings import Settings, is_loopback
from formgate_server.storage.data_folder import DataFolderError, others_may_read, read_keys
from formgate_server.wire import files, tls
from formgate_server.wire.followed import UnfitFileError, content_of

# What the commands and the client library read of the environment, beside the server's settings.
OTHERS = frozenset({
    *("ADDRESS", "KEY", "TOKEN", "TOKEN_FILE", "TRACEBACK"),
    *("TLS", "TLS_CA_FILE", "TLS_CLIENT_CERT_FILE", "TLS_CLIENT_KEY_FILE", "TLS_SERVER_NAME"),
})  # fmt: skip
# What Kubernetes tells every pod of a Service whose name begins with formgate.
_SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)$")
_SOON_DAYS = 14
_DAY = 86_400
_LITTLE_DISK = 1 << 30


def environment(variables: Mapping[str, str]) -> Iterator[Finding]:
    """Look for variables that nobody reads, such as those with a slip of the pen."""
    known = {f"FORMGATE_{name}" for name in OTHERS} | {f"FORMGATE_{name.upper()}" for name in Settings.model_fields}
    for name in sorted(variables):
        if name.startswith("FORMGATE_") and name not in known and not _SERVICE_LINK.search(name):
            near = get_close_matches(name, known, 1)
            yield warn("settings", f"{name} is no setting", f"is it {near[0]}?" if near else "take it out")


def settings(given: Settings) -> Iterator[Finding]:
    """Look at how they go together."""
    encrypted = "TLS" if given.serves_tls else "no TLS"
    counts = f"{given.workers} worker{'' if given.workers == 1 else 's'}"
    yield ok("settings", f"gRPC on {given.listen} ({encrypted}), HTTP on {given.http}, {counts}")
    if not given.serves_tls and not is_loopback(given.listen):
        yield warn(
            "settings",
            "gRPC is served in clear beyond this machine: keys and tokens can be read on the way",
            "give FORMGATE_TLS_CERT_FILE and FORMGATE_TLS_KEY_FILE, unless a mesh or proxy encrypts",
        )
    if given.auth_http is not None and not is_loopback(given.auth_http):
        yield warn("settings", "gateways ask over HTTP in clear beyond this machine", "see that nobody else can listen")
    yield from _stores_of(given)
    cores = os.cpu_count() or 1
    if given.workers > cores:
        yield warn("settings", f"there are {given.workers} workers for {cores} cores", "have one worker a core")
    most = files.most()
    if most is not None and most < given.max_connections + files.SPARE:
        yield warn(
            "settings",
            f"a process may open {most} files, and is to take {given.max_connections} connections: it takes fewer",
            f"set LimitNOFILE (ulimit -Hn) to {given.max_connections + files.SPARE} or more, or lower"
            " FORMGATE_MAX_CONNECTIONS",
        )


def _stores_of(given: Settings) -> Iterator[Finding]:
    if given.workers > 1 and (given.database_url is None or given.redis_url is None):
        yield fail(
            "settings",
            "several workers without PostgreSQL and Redis would multiply the limits",
            "give FORMGATE_DATABASE_URL and FORMGATE_REDIS_URL, or have one worker",
        )
    elif given.database_url is not None and given.redis_url is None:
        yield fail("settings", "PostgreSQL is shared, and the counters are not", "give FORMGATE_REDIS_URL")
    if given.database_url is not None and given.redis_url is not None and given.processes is None:
        yield warn(
            "settings",
            f"while Redis is away, {given.sharers} process(es) share the limits, as if there were no other server",
            "set FORMGATE_PROCESSES to the number of all workers on all machines",
        )


def secrets(given: Settings) -> Iterator[Finding]:
    """Look at the files of secrets: whether they are there, as they must be, and nobody else's to read."""
    shared = given.database_url is not None
    for name, path, beside in (
        ("pepper", given.pepper_file, "pepper"),
        ("sealing key", given.sealing_key_file, "sealing.key"),
    ):
        variable = f"FORMGATE_{name.upper().replace(' ', '_')}_FILE"
        if path is None and shared:
            yield fail(name, "PostgreSQL asks for one, the same for all servers", f"give {variable}")
        elif path is None and not (given.data / beside).exists():
            yield ok(name, "the first start makes it")
        else:
            yield _keys(name, path or given.data / beside)
    if given.bootstrap_token_file is not None:
        yield _private("bootstrap token", given.bootstrap_token_file)
    if not shared:
        yield from _data_folder(given.data)


def _keys(name: str, path: Path) -> Finding:
    try:
        count = len(read_keys(path))
    except DataFolderError as error:
        return fail(name, str(error), "put back the file of this database, mode 0600")
    return ok(name, f"{path}: {count} line{'' if count == 1 else 's'}")


def _private(name: str, path: Path) -> Finding:
    try:
        status = path.stat()
    except OSError as error:
        return fail(name, f"{path}: {error.strerror}", "put it there, or take the setting out")
    if not os.access(path, os.R_OK):
        return fail(name, f"{path} can not be read by uid {os.geteuid()}", "give it to the account that serves")
    if others_may_read(status.st_mode, status.st_uid, os.geteuid()):
        return warn(name, f"{path} has mode {status.st_mode & 0o7777:04o}: others may read it", f"chmod 600 {path}")
    return ok(name, f"{path} is read by its owner only")


def _data_folder(folder: Path) -> Iterator[Finding]:
    if not folder.exists():
        yield ok("data folder", f"the first start makes {folder}")
        return
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield fail("data folder", f"{folder} is not for uid {os.geteuid()}", "serve as its owner")
        return
    if folder.stat().st_mode & 0o077:
        yield warn("data folder", f"others may look into {folder}", f"chmod 700 {folder}")
    free = shutil.disk_usage(folder).free
    if free < _LITTLE_DISK:
        yield warn("data folder", f"{free >> 20} MB are free for {folder}", "make room: a full disk ends changes")
    else:
        yield ok("data folder", f"{folder}, {free >> 30} GB free")
    if (folder / "manager.token").exists():
        yield _private("manager's token", folder / "manager.token")


def policies(given: Settings) -> tuple[Policies | None, Finding]:
    """Load the policies, and say how they are."""
    try:
        loaded = load(given.policy_dir)
    except PolicyError as error:
        return None, fail("policies", str(error), "`formgate policy check` tells more; servers start only without it")
    return loaded, ok("policies", f"{len(loaded.by_name)}: {', '.join(loaded.by_name)}")


def certificates(given: Settings, known: Policies | None, now: Callable[[], float] = time.time) -> Iterator[Finding]:
    """Look at what TLS is served with, and when it ends."""
    if given.tls_cert_file is None or given.tls_key_file is None:
        return
    paths = [path for path in (given.tls_cert_file, given.tls_key_file, given.tls_client_ca_file) if path is not None]
    try:
        found = tls.certificates(paths, [content_of(path) for path in paths], now())
    except UnfitFileError as error:
        yield fail("certificates", str(error), "servers that run keep what they had; none starts with this")
    else:
        yield _ending("certificates", given.tls_cert_file, found.end - now())
        if found.client_ca_end is not None and given.tls_client_ca_file is not None:
            yield _ending("certificates", given.tls_client_ca_file, found.client_ca_end - now())
        yield _private("certificate's key", given.tls_key_file)
    if given.tls_identities_file is not None:
        yield _identities(given.tls_identities_file, known)


def _ending(subject: str, path: Path, left: float) -> Finding:
    days = f"{path} ends in {left / _DAY:.0f} days"
    if left < _SOON_DAYS * _DAY:
        return warn(subject, days, "have it renewed; servers take the new file by themselves")
    return ok(subject, days)


def _identities(path: Path, known: Policies | None) -> Finding:
    try:
        found = identities.parse(path, content_of(path), known.by_name if known else ())
    except (TomlError, UnfitFileError) as error:
        return fail("identities", str(error), "servers that run keep what they had; none starts with this")
    return ok("identities", f"{path}: {len(found.by_name)}")
