"""FastAPI on uvicorn: a plain function as route, which FastAPI runs in a thread of its pool. Arguments: FOLDER PORT."""

from __future__ import annotations

import sys
import threading
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from tests.bench.servers.common import PATH, answers_of, example_of, threads
from vlmodel.inference import Predictor


class ServiceRequest(BaseModel):
    """The body."""

    image: str
    question: str


def application(folder: str) -> FastAPI:
    """The application."""
    predictor = Predictor.from_pretrained(folder, threads=threads())
    passing, local = threading.Lock(), threading.local()
    app = FastAPI()

    @app.post(PATH)
    def ask(asked: ServiceRequest) -> dict[str, Any]:
        if not hasattr(local, "ready"):  # torch's threads are those of the thread that calls
            torch.set_num_threads(threads())
            local.ready = True
        with passing:  # passes side by side on the same cores take longer than one after the other
            return answers_of(predictor.predict([example_of(asked.image, asked.question)])[0])

    return app


if __name__ == "__main__":
    folder, port = sys.argv[1:]
    uvicorn.run(application(folder), host="127.0.0.1", port=int(port), log_level="error")
