"""A closed loop of callers over HTTP, as a process of its own: `python -m tests.bench.http_load URL FILE CALLERS
SECONDS`. Each caller sends the next of the bodies in FILE (a line each) when its last one is answered. Prints the
seconds of each answer that came in time, as JSON.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from pathlib import Path

import aiohttp


async def load(url: str, bodies: list[bytes], callers: int, seconds: float) -> list[float]:
    """Latencies, in seconds, of all answers within the time."""
    taken: list[float] = []
    following = itertools.cycle(bodies)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=callers)) as session:
        end = time.perf_counter() + seconds

        async def call() -> None:
            while (started := time.perf_counter()) < end:
                async with session.post(
                    url, data=next(following), headers={"content-type": "application/json"}
                ) as answer:
                    answered = await answer.read()
                    if answer.status != 200:
                        raise RuntimeError(f"{url} answered {answer.status}: {answered[:200]!r}")
                if time.perf_counter() < end:
                    taken.append(time.perf_counter() - started)

        await asyncio.gather(*(call() for _ in range(callers)))
    return taken


if __name__ == "__main__":
    url, file, callers, seconds = sys.argv[1:]
    print(json.dumps(asyncio.run(load(url, Path(file).read_bytes().splitlines(), int(callers), float(seconds)))))
