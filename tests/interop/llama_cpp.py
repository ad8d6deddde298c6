# SPDX-License-Identifier: Apache-2.0
"""llama.cpp on a GGUF file: its own server, by the xllamacpp package, in a process of its own.

Keys and values are kept in float32 and attention is not fused, so that a float32 file is computed in float32 throughout.
A file that llama.cpp will not load or fails an assertion on ends that process alone, and its last words are shown.
"""

import json
import os
import subprocess
import sys
import urllib.request


class LlamaCpp:
    """`with LlamaCpp(file, adapters=[file]) as model:`"""

    def __init__(self, model, adapters=(), context=512):
        arguments = {"model": str(model), "adapters": [str(adapter) for adapter in adapters], "context": context}
        self.process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip

    def __enter__(self):
        self.address = self.process.stdout.readline().strip()
        if not self.address:
            raise RuntimeError("llama.cpp did not load the file:\n" + self.process.communicate()[1][-4000:])
        return self

    def __exit__(self, *_):
        self.process.communicate(timeout=60)  # the end of its input ends it

    def post(self, path, **body):
        # Bound to this machine and asked by address: no proxy of the environment is in between.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(
            self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})  # fmt: skip
        with opener.open(request, timeout=120) as answer:
            return json.load(answer)

    def tokens(self, text):
        """Ids of a text, what the model puts around it included; spelled special tokens are special."""
        return self.post("/tokenize", content=text, add_special=True, parse_special=True)["tokens"]

    def answer(self, prompt, count):
        """Greedy text and ids after `prompt`, a text or ids: `count` tokens, or until the model ends."""
        answer = self.post("/completion", prompt=prompt, n_predict=count, temperature=0, top_k=1, return_tokens=True,
                           cache_prompt=False)  # fmt: skip
        return answer["content"], answer["tokens"]

    def log_probabilities(self, prompt, vocabulary):
        """Of every token after `prompt`, ids: [vocabulary] by id."""
        answer = self.post("/completion", prompt=prompt, n_predict=1, temperature=0, n_probs=vocabulary,
                           cache_prompt=False)  # fmt: skip
        found = {entry["id"]: entry["logprob"] for entry in answer["completion_probabilities"][0]["top_logprobs"]}
        return [found[token] for token in range(vocabulary)]


def serve(model, adapters, context):
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0) for adapter in adapters]
    parameters.n_ctx = context
    parameters.n_parallel = 1
    parameters.warmup = False
    parameters.fit_params = False
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = 1
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)  # the server's own end waits for its loop, now and then for ever


if __name__ == "__main__":
    serve(**json.loads(sys.argv[1]))
