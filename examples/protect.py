"""A service with one route that is protected and one that is open: uvicorn --app-dir examples protect:app."""

from fastapi import FastAPI

from formgate import AsyncClient
from formgate.middleware.asgi import FormgateMiddleware, Open, Rule

app = FastAPI()
app.add_middleware(
    FormgateMiddleware,
    client=AsyncClient(timeout=2),
    rules=[
        Open("GET", "/health"),
        Rule("GET", "/forms/{form_id}", permissions=["forms.read"], resources=["forms/{form_id}"]),
    ],
)


@app.get("/health")
async def health() -> dict[str, str]:
    """Tell that it runs."""
    return {"status": "ok"}


@app.get("/forms/{form_id}")
async def read(form_id: str) -> dict[str, str]:
    """Tell of a form."""
    return {"form": form_id}


@app.get("/forms/{form_id}/secrets")
async def forgotten(form_id: str) -> dict[str, str]:
    """Tell what nobody should know: there is no rule for it yet."""
    return {"form": form_id, "secret": "of somebody"}
