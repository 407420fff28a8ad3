"""The node's seed ISO, claimed once from `imagegen serve`: by TLS, from a server that the pinned CA signed."""

from __future__ import annotations

import hashlib
import http.client
import ssl
import urllib.error
import urllib.request

from imagegen_node.engine.direct import OPENER
from imagegen_node.engine.errors import Refused, Waiting

from imagegen_deploy.plan import Plan

TIMEOUT = 30.0  # seconds
MOST_BYTES = 8 << 20
MOST_CA_BYTES = 64 << 10
BUSY = (429, 500, 502, 503)  # answers that do not use up the claim
ATTACHED = "a medium labelled {} is attached: no seed is requested"  # two for one node could contradict each other


def fetch_ca(plan: Plan) -> str:
    """The CA's certificate as PEM. Raises Refused for any but the one that the command line names, and Waiting."""
    url = f"{plan.url}/ca.pem"
    try:
        with OPENER.open(url, timeout=TIMEOUT) as answer:
            data: bytes = answer.read(MOST_CA_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise Waiting(f"{url}: {getattr(error, 'reason', None) or error}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != plan.ca:
        raise Refused(f"{url} has the sha256 {found}, not {plan.ca} as in the node's script: the seed is not requested")
    return data.decode("ascii")


class Claim:
    """One boot's claim. A refusal is final: each further request would be reported as a replay."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._seed = b""
        self._refused: Refused | None = None

    def take(self) -> bytes:
        """The seed; empty where none is given out. Raises Refused, the same each time, and Waiting."""
        if self._refused:
            raise self._refused
        if self._plan.seed and not self._seed:
            try:
                self._seed = claim_seed(self._plan)
            except Refused as error:
                self._refused = error
                raise
        return self._seed


def claim_seed(plan: Plan) -> bytes:
    """The bytes of the seed ISO. Raises Refused when the server refuses or is not the one that was named, and Waiting.

    Only what comes before the request is tried again: the server answers it once.
    """
    context = ssl.create_default_context(cadata=fetch_ca(plan))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    where = plan.seed.rsplit("/", 1)[0]  # without the token
    try:
        with opener.open(plan.seed, timeout=TIMEOUT) as answer:
            data: bytes = answer.read(MOST_BYTES + 1)
    except urllib.error.HTTPError as error:
        said = " ".join(error.read(300).decode(errors="replace").split())
        if error.code in BUSY:
            raise Waiting(f"{where} ({error.code}): {said}") from error
        raise Refused(
            f"{where} refuses the seed ({error.code}): {said}. Open the window (imagegen serve --arm {plan.node}) and "
            "restart this machine"
        ) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise Refused(f"{where}: {error.reason}: this is not the server that the node's script names") from error
        raise Waiting(f"{where}: {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise Refused(f"the connection to {where} broke in the middle of the seed: {error}") from error
    if len(data) > MOST_BYTES:
        raise Refused(f"{where} sends more than {MOST_BYTES} bytes: that is not a seed")
    return data
