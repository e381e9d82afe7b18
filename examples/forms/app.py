"""Forms, with FastAPI: uvicorn forms.app:app."""

from typing import Annotated

from fastapi import Body, FastAPI, Request

from formgate import AsyncClient
from formgate.middleware.asgi import FormgateMiddleware, Open, Rule

RULES = [
    Open("GET", "/health"),
    Rule("GET", "/forms/{form_id}", permissions=["forms.read"], resources=["forms/{form_id}"]),
    Rule("PUT", "/forms/{form_id}", permissions=["forms.edit"], resources=["forms/{form_id}"]),
]

app = FastAPI()
app.add_middleware(FormgateMiddleware, client=AsyncClient(timeout=2), rules=RULES)

titles = {"f1": "Sign up", "f2": "Feedback"}


@app.get("/health")
async def health() -> dict[str, str]:
    """Tell that it runs."""
    return {"status": "ok"}


@app.get("/forms/{form_id}")
async def read(form_id: str, request: Request) -> dict[str, str]:
    """Tell a form's title, and whose key asks."""
    return {"form": form_id, "title": titles.get(form_id, ""), "account": request.scope["formgate"].key.account_id}


@app.put("/forms/{form_id}")
async def edit(form_id: str, title: Annotated[str, Body(embed=True)]) -> dict[str, str]:
    """Change a form's title."""
    titles[form_id] = title
    return {"form": form_id, "title": title}


@app.get("/forgotten")
async def forgotten() -> dict[str, str]:
    """A route that nobody wrote a rule for: it is closed."""
    return {"secret": "of somebody"}
