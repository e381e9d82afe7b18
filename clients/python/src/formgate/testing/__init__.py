"""For the tests of whoever uses the client: a Formgate in the test's own process, with nothing to start.

::

    fake = FakeFormgate()
    key = fake.add_key(grants=[Grant("forms/f1", ("forms.read",))], limits=[FakeLimit("rate", 2, timedelta(minutes=1))])
    app = make_app(fake.client)          # wherever a Client is wanted; fake.async_client for an AsyncClient
    fake.advance(60)                     # its time is the test's
    fake.deny(Reason.KEY_EXPIRED)        # whatever is asked
    fake.down()                          # the service does not answer

It decides by ``formgate.rules``, the code that the service runs, as the policy ``default`` says; the same cases run
through it and a real server in Formgate's own tests. docs/client/testing.md says what it leaves out.
"""

from formgate.rules.grants import Grant, Level
from formgate.rules.reason import Reason
from formgate.testing.clients import FakeAsyncClient, FakeClient
from formgate.testing.fake import FakeFormgate, FakeKey
from formgate.testing.limits import FakeLimit

__all__ = ["FakeAsyncClient", "FakeClient", "FakeFormgate", "FakeKey", "FakeLimit", "Grant", "Level", "Reason"]
