"""Errors in the form of OpenAI's API, with its status codes."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.responses import Response

from vqa_app.errors import ContextOverflowError, ModelError, SchemaError, VqaError
from vqa_app.serving.openai_schema import ErrorDetails, ErrorResponse
from vqa_app.serving.redact import redact_options, redact_paths

log = logging.getLogger(__name__)

API_PATH = re.compile(r"/v1(/.*)?", re.DOTALL)
"""Paths of OpenAI's API; whoever asks there expects its errors."""
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """A request that is refused or failed.

    Args:
        status: HTTP status.
        message: What is wrong, and what to do.
        param: Name of the field that is wrong.
        code: OpenAI's name of the error.
        headers: Headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers

    def body(self) -> ErrorResponse:
        """Return the body of the response."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return ErrorResponse(
            error=ErrorDetails(
                message=self.message,
                type=_TYPES.get(self.status, kind),
                param=self.param,
                code=self.code,
            )
        )

    def response(self) -> Response:
        """Return the response."""
        return Response(
            self.body().model_dump_json(), self.status, self.headers, "application/json"
        )


class AnswerStopped(Exception):
    """Raised when an answer was cancelled: the client has gone, or the server stops."""


def to_api_error(error: BaseException) -> ApiError:
    """Return what a client is told about an error."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, AnswerStopped):
        return ApiError(503, "The server is shutting down.")
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail))
    if isinstance(error, VqaError):
        hint = redact_options(error.hint)
        message = redact_paths(f"{error.problem} {hint}".strip())
        if isinstance(error, ContextOverflowError):
            return ApiError(400, message, param="messages", code="context_length_exceeded")
        if isinstance(error, SchemaError):
            return ApiError(400, message, param="response_format")
        return ApiError(503 if isinstance(error, ModelError) else 400, message)
    log.error("A chat completion failed", exc_info=error)
    return ApiError(500, "The server had an unexpected error; its log says more.")
