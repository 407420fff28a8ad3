"""Nodes of a fleet that post their status to a server on the loopback, each from an address of its own.

usage: load.py URL NODES DOCUMENTS      prints {"answers": {line: count}, "seconds": S, "polls": [S, ...]}
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from urllib.parse import urlsplit

AT_ONCE = 100  # connections
STEPS = ("role", "files", "machine", "configure", "wait-messaging", "wait-identity", "compute-id", "libvirt", "mapped")


def node_name(number: int) -> str:
    return f"c-{number}" if number else "ctl"


def render_document(number: int, count: int, last: bool) -> bytes:
    """The node's status in its `count`-th step, as long as a real one."""
    steps = [{"name": f"{STEPS[n % 9]}-{n}", "state": "done", "seconds": 1.5, "rc": 0} for n in range(count)]
    document = {
        "version": 1, "node": node_name(number), "role": "compute" if number else "controller", "steps": steps,
        "state": "ready" if last else "working", "step": "" if last else f"{STEPS[count % 9]}-{count}",
        "detail": f"what step {count} has to say about it", "since": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    return json.dumps(document).encode()


async def ask(host: str, port: int, source: str, head: str, body: bytes = b"") -> bytes:
    """The whole answer to one request, on a connection of its own, as urllib makes it."""
    reader, writer = await asyncio.open_connection(host, port, local_addr=(source, 0))
    kind = "Content-Type: application/json\r\n" if body else ""
    text = f"{head} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{kind}Content-Length: {len(body)}\r\n\r\n"
    writer.write(text.encode() + body)
    answer = await reader.read()
    writer.close()
    return answer


async def post_fleet(url: str, nodes: int, documents: int) -> dict[str, object]:
    host, port = str(urlsplit(url).hostname), urlsplit(url).port or 80
    gate, over = asyncio.Semaphore(AT_ONCE), False
    answers: Counter[str] = Counter()
    polls = []

    async def run_node(number: int) -> None:
        source = f"127.{1 + number // 62500}.{1 + number // 250 % 250}.{1 + number % 250}"
        for count in range(documents):
            async with gate:
                body = render_document(number, count, count == documents - 1)
                answer = await ask(host, port, source, "POST /status", body)
                answers[answer.split(b"\r\n")[0].decode()] += 1

    async def watch() -> None:
        revision = 0
        while not over:
            begun = time.monotonic()
            answer = await ask(host, port, "127.0.0.3", f"GET /nodes.json?since={revision}")
            revision = json.loads(answer.partition(b"\r\n\r\n")[2])["revision"]
            polls.append(round(time.monotonic() - begun, 4))
            await asyncio.sleep(1.0)

    watcher = asyncio.create_task(watch())
    begun = time.monotonic()
    await asyncio.gather(*(run_node(number) for number in range(nodes)))
    seconds, over = time.monotonic() - begun, True
    await watcher
    return {"answers": answers, "seconds": round(seconds, 3), "polls": polls}


if __name__ == "__main__":
    url, nodes, documents = sys.argv[1:]
    print(json.dumps(asyncio.run(post_fleet(url, int(nodes), int(documents)))))
