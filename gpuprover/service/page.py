"""The status page: one document with its own style and script, which asks ``/v1/status`` every second."""

from __future__ import annotations

import base64
import re
from functools import lru_cache
from hashlib import sha256
from importlib.resources import files

from fastapi import APIRouter, Response

router = APIRouter(include_in_schema=False)


@lru_cache(maxsize=1)
def page() -> tuple[bytes, str]:
    """The document, and a policy that lets nothing run or load but what is in it."""
    text = files("gpuprover.service").joinpath("page.html").read_text("utf-8")

    def allowed(element: str) -> str:
        contents = re.findall(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
        digests = [base64.b64encode(sha256(content.encode()).digest()).decode() for content in contents]
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    policy = (
        f"default-src 'none'; script-src {allowed('script')}; style-src {allowed('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.encode(), policy


@router.get("/")
async def status_page() -> Response:
    text, policy = page()
    headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}
    return Response(text, headers=headers, media_type="text/html; charset=utf-8")
