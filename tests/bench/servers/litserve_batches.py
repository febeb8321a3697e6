"""LitServe: a worker process with a queue, which decodes and batches what has arrived. Arguments: FOLDER PORT."""

# LitServe reads annotations as they stand, so they are no strings here.

import sys
from typing import Any

import litserve

from tests.bench.servers.common import MAX_BATCH, PATH, answers_of, example_of, threads
from vlmodel.inference import Prediction, Predictor
from vlmodel.processor import Example


class Api(litserve.LitAPI):
    """The methods that LitServe asks for. Without batches of its own it stacks arrays, which files are not."""

    def __init__(self, folder: str) -> None:
        # A timeout of 0 would have it answer one by one. 5 ms is less than what its examples have, and was faster.
        super().__init__(max_batch_size=MAX_BATCH, batch_timeout=0.005, api_path=PATH)
        self.folder = folder

    def setup(self, device: str) -> None:
        self.predictor = Predictor.from_pretrained(self.folder, threads=threads())

    def decode_request(self, request: dict[str, Any]) -> Example:
        return example_of(**request)

    def batch(self, inputs: list[Example]) -> list[Example]:
        return inputs

    def predict(self, x: list[Example] | Example) -> Any:
        return self.predictor.predict(x) if isinstance(x, list) else self.predictor.predict([x])[0]

    def unbatch(self, output: list[list[Prediction]]) -> list[list[Prediction]]:
        return output

    def encode_response(self, output: list[Prediction]) -> dict[str, Any]:
        return answers_of(output)


if __name__ == "__main__":
    folder, port = sys.argv[1:]
    server = litserve.LitServer(Api(folder), accelerator="cpu", devices=1, workers_per_device=1)
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, log_level="error", num_api_servers=1)
