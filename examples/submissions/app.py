"""What was submitted to forms, with Flask: waitress-serve submissions.app:app."""

from flask import Flask, request

from formgate import Client
from formgate.middleware.wsgi import FormgateMiddleware, Open, Rule, current_verdict

RULES = [
    Open("GET", "/health"),
    Rule(
        "GET",
        "/forms/{form_id}/submissions",
        permissions=["submissions.read"],
        resources=["forms/{form_id}/submissions"],
    ),
    Rule("POST", "/forms/{form_id}/submissions", permissions=["submissions.create"], resources=["forms/{form_id}"]),
]

app = Flask(__name__)
app.wsgi_app = FormgateMiddleware(app.wsgi_app, Client(timeout=2), RULES)  # type: ignore[method-assign] # Flask's own way

submitted: dict[str, list[dict[str, object]]] = {}


@app.get("/health")
def health() -> dict[str, str]:
    """Tell that it runs."""
    return {"status": "ok"}


@app.get("/forms/<form_id>/submissions")
def read(form_id: str) -> list[dict[str, object]]:
    """List what was submitted."""
    return submitted.get(form_id, [])


@app.post("/forms/<form_id>/submissions")
def create(form_id: str) -> tuple[dict[str, object], int]:
    """Submit; the key that did is kept with it."""
    key = current_verdict().key
    row = {"answers": request.get_json(), "by": key.display_name if key else ""}
    submitted.setdefault(form_id, []).append(row)
    return row, 201
