"""What the core needs of the world: each port states what an implementation MUST hold.

Every method that reaches a store raises UnavailableError when the store does not answer, and leaves nothing half done;
CountersUnavailableError where it is the counters' store.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol, TypeAlias

from formgate_server.core.errors import UnavailableError
from formgate_server.core.limits import Counter, Standing, State
from formgate_server.core.model import Account, AuditEvent, Key, Limit, Member, ServiceToken, UsageOutcome, UsageRecord
from formgate_server.core.verdict import KeyRecord


class Clock(Protocol):
    """The time of day."""

    def now(self) -> int:
        """Return the microseconds since the Unix epoch. It may jump, either way."""
        ...


class Sealed(NamedTuple):
    """A recoverable secret, encrypted under the sealing key with that id."""

    box: bytes
    sealing_key_id: str


class StoredSecret(NamedTuple):
    """What is kept of a secret. ``sealed`` None: it can not be shown again."""

    digest: bytes
    pepper_id: str
    sealed: Sealed | None = None


class KeyStore(Protocol):
    """Keys by secret, for checks."""

    async def find(self, digests: Sequence[bytes], *, at_least: int = 0) -> KeyRecord | None:
        """Return the key that has one of these secret digests; None: there is none, a deleted one included.

        Key and epoch MUST come from one statement on the primary. What is returned MUST be of an epoch of ``at_least``
        or read from the primary after the call began; of a lower epoch than ``at_least`` it may be only in the latter
        case.
        """
        ...


class KeyCache(KeyStore, Protocol):
    """A KeyStore that has some keys at hand."""

    def known(self, digests: Sequence[bytes]) -> KeyRecord | None:
        """Return the key where it is at hand, without I/O, of whatever epoch; None proves nothing."""
        ...


class TooManyAttempts(NamedTuple):
    """A key was not looked for: its source address has shown too many that there are not.

    ``retry_after`` in microseconds: from then on one more is looked for.
    """

    retry_after: int


class KeyFinder(Protocol):
    """Keys by secret, for checks from all the world."""

    def known(self, digests: Sequence[bytes]) -> KeyRecord | None:
        """Return the key where it is at hand, as ``KeyCache.known`` does."""
        ...

    async def find(
        self, digests: Sequence[bytes], *, at_least: int = 0, source_ip: str = "", newest: bool = False
    ) -> KeyRecord | TooManyAttempts | None:
        """Return the key as ``KeyStore.find`` does; ``newest``: by a read begun after the call, and no other.

        Keys that are not at hand may be refused without being looked for: by TooManyAttempts of ``source_ip`` (empty:
        never), or by UnavailableError where they are too many in all. With ``at_least`` none is.
        """
        ...


class Charge(NamedTuple):
    """What to charge: ``cost`` to all ``counters`` or to none, if the account's epoch is still ``epoch``."""

    account_id: str
    epoch: int
    key_id: str
    counters: tuple[Counter, ...] = ()
    cost: int = 0
    request_id: str = ""


class Charged(NamedTuple):
    """Decided under the charge's epoch. ``denied`` None: admitted. ``retry_after`` in microseconds, None: never."""

    denied: Limit | None
    retry_after: int | None
    standings: tuple[Standing, ...]
    degraded: bool = False


class EpochMoved(NamedTuple):
    """Nothing was charged: the account's epoch is ``epoch`` by now, above the charge's."""

    epoch: int


class EpochMissing(NamedTuple):
    """Nothing was charged: the epoch is not known here. A database read begun after this may ``seed`` it."""

    incarnation: int


ChargeResult: TypeAlias = Charged | EpochMoved | EpochMissing


class Limiter(Protocol):
    """The counters, and beside them the epoch of every account, compared in the same atomic step (docs/adr/0001)."""

    async def charge(self, charge: Charge) -> ChargeResult:
        """Compare the epoch and charge, in one atomic step as ``core.limits.spend`` says.

        A present epoch below the charge's MUST be raised to it. With no counters only the epoch is compared. An
        admission with a ``request_id`` and a cost above 0 MUST be remembered for 60 seconds for its key; repeated, also
        concurrently, it is admitted without being charged again. Raises LostAnswerError where it may have been charged.
        """
        ...

    async def charge_many(self, charges: Sequence[Charge]) -> Sequence[ChargeResult | UnavailableError]:
        """Charge each as ``charge`` does, each a step of its own, and return the results in order.

        What ``charge`` would raise stands in the place of the charge that it is of, and takes no other along. Charges
        are done in this order, but for those that have to wait. A store far away SHOULD be reached by one round trip.
        """
        ...

    async def publish(self, account_id: str, epoch: int) -> None:
        """Raise the account's epoch: when this has returned no charge with a lower one goes through.

        It MUST only rise. Where it is missing none is set: a new incarnation is left, so that a seed under way fails.
        Raises UnavailableError where it may not be raised.
        """
        ...

    async def seed(self, account_id: str, epoch: int, incarnation: int) -> None:
        """Set the missing epoch, read from the database after ``charge`` told ``incarnation``; else do nothing."""
        ...

    async def look(self, account_id: str, counters: Sequence[Counter]) -> tuple[Standing, ...]:
        """Tell where counters stand; charge nothing."""
        ...

    async def adjust(self, account_id: str, counters: Sequence[Counter], units: int, *, once: str) -> None:
        """Charge ``units`` to the counters, beyond their amounts if need be.

        ``once`` names this charge in the account: repeated within an hour, also after a LostAnswerError, nothing is
        charged again.
        """
        ...

    async def refund(self, account_id: str, key_id: str, request_id: str) -> None:
        """Give back what the admission with ``request_id`` was charged, once, while it is remembered."""
        ...


class LeaseCharge(NamedTuple):
    """What to lease: at most ``units`` of all ``counters`` for at most ``duration`` microseconds.

    Only if the account's epoch is still ``epoch``. ``lease_id`` names the lease in the account.
    """

    account_id: str
    epoch: int
    counters: tuple[Counter, ...]
    units: int
    duration: int
    lease_id: str


class Leased(NamedTuple):
    """Decided under the epoch. ``units`` are charged, and may be used for ``duration`` microseconds from the call on.

    ``units`` 0: none are, and for ``duration`` it is of no use to ask again. ``degraded``: because a store is away.
    """

    units: int
    duration: int
    standings: tuple[Standing, ...] = ()
    degraded: bool = False


LeaseResult: TypeAlias = Leased | EpochMoved | EpochMissing


class LeasesOut(NamedTuple):
    """What is known of an account's leases: those granted here are over in ``left`` microseconds.

    Of those granted more than ``known_for`` microseconds ago nothing is known; None: all are known.
    """

    left: int
    known_for: int | None


class Leases(Protocol):
    """What is charged ahead, so that others decide for a moment; the same counters and epochs as the Limiter's."""

    async def lease(self, wanted: LeaseCharge) -> LeaseResult:
        """Compare the epoch and charge what may be leased, in one atomic step, as ``core.limits.lend`` says.

        The lease MUST be known to ``out`` from that step on. Its charge is remembered under its id for 10 minutes; of
        an id that is remembered nothing is leased. Less may be leased than would fit. While a store is away, none is:
        never is a lease granted that a change could not wait for.
        """
        ...

    async def settle(self, account_id: str, lease_id: str, unused: int) -> int:
        """Give back at most ``unused`` units of what the lease was charged, once, while it is remembered.

        Returns how many: 0 of a lease that is settled already, or not known. Raises LostAnswerError where it may have
        been settled.
        """
        ...

    async def out(self, account_id: str) -> LeasesOut:
        """Tell what leases of the account may be out."""
        ...

    async def none_out(self, account_id: str) -> None:
        """Note that there can be none: the account is new."""
        ...


class Reserved(NamedTuple):
    """A counter's mark in the database: as it stood when written, and how much may have been charged since.

    ``serial`` orders the marks of a counter that several processes raise: how much may ever have been charged to it,
    on a count that never goes back; so ``serial - ahead`` was charged when it was written. 0: there is but one process.
    ``expire_time``: from then on nothing of it counts any more; None: never.
    """

    state: State
    ahead: int
    serial: int = 0
    expire_time: int | None = None


class Reservations(Protocol):
    """The counters' marks in the database: a lost counters' store is seeded from them (docs/adr/0005)."""

    async def load(self, counter_ids: Collection[str]) -> Mapping[str, Reserved]:
        """Return the marks that there are, read after the call began."""
        ...

    async def save(self, marks: Mapping[str, Reserved]) -> None:
        """Write marks, each replacing its counter's; durable when this returns."""
        ...

    async def advance(self, marks: Mapping[str, Reserved], *, insist: bool = False) -> Collection[str]:
        """Write those marks whose serial is above that of the one there, and return whose they are.

        One that would be over before the one there is left out, too: it is of an earlier period; ``insist``: it is not.
        Durable when this returns. Two of the same counter at once: both end as if one had come after the other.
        """
        ...

    async def forget(self, before: int, most: int) -> int:
        """Delete at most ``most`` marks with an ``expire_time`` before ``before``, and return how many."""
        ...


class News(NamedTuple):
    """The epochs of accounts that changed, and the time, by the database's clock, from which on to ask next."""

    epochs: Mapping[str, int]
    until: int


class Epochs(Protocol):
    """The accounts' epochs in the database, read from the primary."""

    async def of(self, account_ids: Collection[str]) -> Mapping[str, int]:
        """Return the epochs, read after the call began; of an account that is not there, none."""
        ...

    async def since(self, moment: int | None) -> News:
        """Return the newest epoch of each account that changed since ``moment``; None: nothing but the time now.

        It MUST NOT miss a change whose transaction began before ``moment`` and was committed after: ``until`` of the
        call before may be given.
        """
        ...

    async def forget(self, before: int, most: int) -> int:
        """Delete at most ``most`` changes from before ``before``, and return how many."""
        ...

    async def renew(self, after: str, most: int) -> Sequence[str]:
        """Raise the epochs of the next ``most`` accounts after ``after``, and return their ids in order.

        Each is then above all that the account ever had, those included that the database has forgotten.
        """
        ...


class Transaction(Protocol):
    """A change under way: all of it, the audit rows included, is committed together or not at all.

    What is read here is locked until the transaction ends.
    """

    async def account(self, account_id: str) -> Account | None:
        """Return the account."""
        ...

    async def insert_account(self, account: Account) -> None:
        """Add an account. Raises AlreadyExistsError where the id is taken."""
        ...

    async def update_account(self, account: Account) -> None:
        """Write the account, epoch and version as given."""
        ...

    async def key(self, key_id: str) -> Key | None:
        """Return the key."""
        ...

    async def insert_key(self, key: Key, secret: StoredSecret, request_id: str) -> None:
        """Add a key with its secret. Its ``request_id``, where given, is new: see ``key_of_request``."""
        ...

    async def count_keys(self, account_id: str) -> int:
        """Return how many keys the account has, revoked and deleted ones not counted."""
        ...

    async def keys_created_by(self, account_id: str, member_id: str) -> list[Key]:
        """Return the keys that a member created, by id, deleted ones not."""
        ...

    async def replace_secret(self, key_id: str, secret: StoredSecret, until: int) -> None:
        """Add a secret to a key; those that it had end at ``until``, or where they have an earlier end, at that."""
        ...

    async def sealed_secret(self, key_id: str) -> Sealed | None:
        """Return the key's newest secret, if it can be shown again."""
        ...

    async def delete_key(self, key_id: str, now: int) -> None:
        """Leave a tombstone: nothing but ``UsageLedger.owners`` finds the key any more."""
        ...

    async def key_of_request(self, account_id: str, request_id: str) -> str | None:
        """Return the id of the key that this CreateKey request made."""
        ...

    async def update_key(self, key: Key) -> None:
        """Write the key but for ``last_used_*``."""
        ...

    async def member(self, account_id: str, member_id: str) -> Member | None:
        """Return the member."""
        ...

    async def put_member(self, member: Member) -> None:
        """Add the member, or replace the one of that id."""
        ...

    async def delete_member(self, account_id: str, member_id: str) -> None:
        """Remove the member."""
        ...

    async def raise_epoch(self, account_id: str) -> int:
        """Add one to the account's epoch and return it."""
        ...

    async def token(self, token_id: str) -> ServiceToken | None:
        """Return the service token."""
        ...

    async def insert_token(self, token: ServiceToken, digest: bytes, pepper_id: str) -> None:
        """Add a service token with its secret's digest."""
        ...

    async def replace_token_digest(self, token_id: str, digest: bytes, pepper_id: str) -> None:
        """Store the service token's secret by this digest instead."""
        ...

    async def token_of_digest(self, digests: Sequence[bytes]) -> ServiceToken | None:
        """Return the service token that has one of these secret digests."""
        ...

    async def update_token(self, token: ServiceToken) -> None:
        """Write the service token."""
        ...

    async def audit(self, event: AuditEvent) -> None:
        """Add a row to the audit trail."""
        ...


class KeyFilter(NamedTuple):
    """Which of an account's keys to list; 0 and empty: any."""

    account_id: str
    state: int = 0
    environment: int = 0
    created_by: str = ""


class AuditFilter(NamedTuple):
    """Which of an account's audit rows to list. ``target`` empty: any; [start, end) in microseconds."""

    account_id: str
    target: str = ""
    start: int = 0
    end: int = 2**63 - 1


class AuditRow(NamedTuple):
    """A row of the audit trail as it is kept: ``mac`` chains it to the one before, under the key ``mac_key_id``."""

    sequence: int
    event: AuditEvent
    mac: bytes
    mac_key_id: str


class Scope(NamedTuple):
    """What a caller sees; empty: everything."""

    account_id: str = ""
    policy: str = ""


class Cursor(NamedTuple):
    """Where a listing goes on: after the row that was created then and has that id."""

    create_time: int
    id: str


class Registry(Protocol):
    """The truth: accounts, keys, service tokens and the audit trail."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Begin a change; committed, durably, when the block ends, undone when it raises or is cancelled."""
        ...

    async def account(self, account_id: str) -> Account | None:
        """Return the account."""
        ...

    async def plans(self) -> set[tuple[str, str]]:
        """Return the policies and plans that accounts have."""
        ...

    async def accounts(self, scope: Scope, after: Cursor | None, most: int) -> list[Account]:
        """Return accounts by (create_time, id)."""
        ...

    async def key(self, key_id: str) -> Key | None:
        """Return the key."""
        ...

    async def keys(self, wanted: KeyFilter, after: Cursor | None, most: int) -> list[Key]:
        """Return keys by (create_time, id)."""
        ...

    async def token_by_digest(self, digests: Sequence[bytes]) -> ServiceToken | None:
        """Return the service token that has one of these secret digests."""
        ...

    async def tokens(self, scope: Scope, after: Cursor | None, most: int) -> list[ServiceToken]:
        """Return the service tokens bound within ``scope``, by (create_time, id)."""
        ...

    async def members(self, account_id: str, after: Cursor | None, most: int) -> list[Member]:
        """Return an account's members by (create_time, id)."""
        ...

    async def audit_rows(self, wanted: AuditFilter, before: int | None, most: int) -> list[AuditRow]:
        """Return audit rows, newest first: those with a sequence below ``before``."""
        ...

    async def note_used(self, last_used: Mapping[str, tuple[int, str]]) -> None:
        """Write when and whence keys (by id) were last used; an earlier time never replaces a later one."""
        ...


class UsageEntry(NamedTuple):
    """A record to be kept: whose it is, when it counts, the digest of its content as sent, and its tags to sum by."""

    account_id: str
    occur_time: int
    content: bytes
    record: UsageRecord
    summed_tags: tuple[tuple[str, str], ...] = ()


class UsageFilter(NamedTuple):
    """Which usage to sum up: of the hours that begin in [start, end). ``key_id`` empty: all keys."""

    account_id: str
    key_id: str
    start: int
    end: int


class UsageSum(NamedTuple):
    """The usage of an hour, and of the group (a key, an operation or a tag's value) that was asked for."""

    hour: int
    group: str
    units: int
    records: int


class KeyOwner(NamedTuple):
    """Whose a key is; of deleted keys too."""

    account_id: str
    policy: str


class KeyHolder(NamedTuple):
    """A key and its account."""

    key: Key
    account: Account


class Owed(NamedTuple):
    """What an accepted record wants charged to its key (0: nothing) or given back (empty: nothing)."""

    account_id: str
    record_id: str
    key_id: str
    charge_units: int
    refund_request_id: str


def owes(record: UsageRecord) -> bool:
    """Tell whether a record wants anything charged or given back."""
    return bool(record.charge_units or record.refund_request_id)


def owed(entry: UsageEntry) -> Owed:
    """Return what an accepted record owes."""
    record = entry.record
    return Owed(entry.account_id, record.record_id, record.key_id, record.charge_units or 0, record.refund_request_id)


class UsageLedger(Protocol):
    """What was consumed, and what of it is still to be charged."""

    async def owners(self, key_ids: Collection[str]) -> Mapping[str, KeyOwner]:
        """Return whose these keys are; unknown ones are left out."""
        ...

    async def record(self, entries: Sequence[UsageEntry]) -> list[UsageOutcome]:
        """Keep records and add them to the sums of the hour in which they happened, in one transaction.

        Returns for each, in order: ACCEPTED; DUPLICATE where its (account_id, record_id) is there with the same
        content, CONFLICT with another, a record earlier in ``entries`` included. Durable when this returns. A tag has
        sums for its first 1,000 values of an account's hour, and for ``__other__``. What accepted records say of
        ``charge_units`` and ``refund_request_id`` is ``pending`` from the same transaction on.
        """
        ...

    async def holders(self, key_ids: Collection[str]) -> Mapping[str, KeyHolder]:
        """Return these keys, revoked ones too, with their accounts; deleted and unknown ones are left out."""
        ...

    async def pending(self, older_than: int, most: int) -> list[Owed]:
        """Return at most ``most`` of what has been owed for ``older_than`` microseconds, the oldest first.

        By the store's own clock. What is returned counts as new from then on: nobody else is given it for a while.
        """
        ...

    async def done(self, settled: Sequence[Owed]) -> None:
        """Forget what was owed. What is forgotten already is no error."""
        ...

    async def forget_records(self, before: int, most: int) -> int | None:
        """Delete at most ``most`` records that happened before ``before``, their sums not, and return how many.

        None, and nothing is deleted: somebody else is deleting.
        """
        ...

    async def forget_sums(self, before: int, most: int) -> int | None:
        """Delete at most ``most`` sums of hours that began before ``before``, as ``forget_records`` does."""
        ...

    async def count_old(self, records_before: int, sums_before: int) -> tuple[int, int]:
        """Return how many records and sums there are that would be forgotten."""
        ...

    async def sums(self, wanted: UsageFilter, group_by: str) -> list[UsageSum]:
        """Return the sums by hour, then group. ``group_by``: ``key``, ``operation``, ``tag:NAME``; empty: one group.

        Sums by tag are of all keys.
        """
        ...
