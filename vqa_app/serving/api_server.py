"""The ASGI application of `vqa-app serve`: OpenAI's API without a page, behind access control."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from vqa_app.serving.guard import AccessRules, Guard
from vqa_app.serving.openai_api import MAX_BODY, ChatApi, openai_routes, operation_routes
from vqa_app.serving.openai_errors import to_api_error


def api_application(
    api: ChatApi, *, keys: Mapping[str, str] | None = None, hosts: Iterable[str] = ()
) -> ASGIApp:
    """Return the application.

    Args:
        api: Answers the requests.
        keys: API keys by name; empty for a server without keys.
        hosts: Host names to answer to, in addition to this machine's.
    """
    app = FastAPI(title="vqa-app", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(openai_routes(api))
    app.include_router(operation_routes(api))

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: Exception) -> Response:
        return to_api_error(error).response()

    return Guard(app, AccessRules(hosts=frozenset(hosts), keys=keys or {}, max_body=MAX_BODY))
