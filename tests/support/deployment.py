"""Several servers over one PostgreSQL and one Redis, as in production: each a process of its own.

::

    with Deployment(tmp_path, postgres_server, redis.url(), policies={"ours": text}) as deployment:
        first, second = deployment.serve(), deployment.serve(redis=proxy_url)
        manager = Client(first.address, deployment.token)
"""

from __future__ import annotations

import asyncio
import secrets
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import URL

from tests.support.postgres import PostgresServer
from tests.support.server import COMMAND, Server, clean_environment


class Deployment:
    """A migrated database, the secrets that all servers share, and the servers."""

    def __init__(
        self,
        folder: Path,
        postgres: PostgresServer,
        redis_url: str,
        *,
        policies: Mapping[str, str] | None = None,
        **settings: object,
    ) -> None:
        """``policies``: files of the operator's own, by name. ``settings``: of every server, by their option's name."""
        self.folder = folder
        self.postgres = postgres
        self.redis_url = redis_url
        self.token = secrets.token_hex(24)
        self.servers: list[Server] = []
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("pepper", "sealing"):
            self._write(name, secrets.token_hex(32))
        self._write("token", self.token)
        (folder / "policies").mkdir()
        for name, text in (policies or {}).items():
            (folder / "policies" / f"{name}.toml").write_text(text)
        self._settings = {f"FORMGATE_{name.upper()}": str(value) for name, value in settings.items()}
        self.database = asyncio.run(self._make_database())
        self.migrate()

    async def _make_database(self) -> URL:
        made = await self.postgres.make_database(migrated=False)
        # What servers ask for, though the tests' PostgreSQL is quick and careless.
        await self.postgres.execute(f'ALTER DATABASE "{made.database}" SET synchronous_commit = on')
        return made

    def _write(self, name: str, line: str) -> None:
        file = self.folder / name
        file.touch(0o600)
        file.write_text(f"{line}\n")

    def environment(self, *, database: URL | None = None, redis: str | None = None) -> dict[str, str]:
        """Return what a server is told by its environment."""
        return {
            "FORMGATE_DATABASE_URL": (database or self.database).render_as_string(hide_password=False),
            "FORMGATE_REDIS_URL": redis or self.redis_url,
            "FORMGATE_PEPPER_FILE": str(self.folder / "pepper"),
            "FORMGATE_SEALING_KEY_FILE": str(self.folder / "sealing"),
            "FORMGATE_BOOTSTRAP_TOKEN_FILE": str(self.folder / "token"),
            "FORMGATE_POLICY_DIR": str(self.folder / "policies"),
            **self._settings,
        }

    def migrate(self) -> None:
        """Run ``formgate migrate``."""
        subprocess.run([COMMAND, "migrate"], env=clean_environment(self.environment()), check=True)

    def serve(self, *options: str, database: URL | None = None, redis: str | None = None, start: bool = True) -> Server:
        """Start a server; ``database`` and ``redis`` may be a proxy's. It ends with the deployment."""
        folder = self.folder / f"server{len(self.servers)}"
        server = Server(folder, *options, environment=self.environment(database=database, redis=redis))
        self.servers.append(server)
        if start:
            server.start()
        return server

    def database_by(self, port: int) -> URL:
        """Return the database's URL through a proxy on ``port``."""
        return self.database.set(port=port)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        running = [server for server in self.servers if server.running]
        try:
            if kind is None:
                for server in running:
                    server.process.terminate()
                codes = [server.wait() for server in running]
                told = "\n".join(server.log[-4_000:] for server in running)
                assert codes == [0] * len(running), f"they ended with {codes}\n{told}"
        finally:
            for server in self.servers:
                server.kill()
