# SPDX-License-Identifier: Apache-2.0
"""`fettle download` against a hub that does everything wrong: errors, retries, resuming, several processes, the token."""

import hashlib
import json
import os
import pty
import random
import signal
import subprocess
import time

import pytest
from conftest import find_program
from hub_support import TOKEN, Client, client, hub, hub_server  # noqa: F401

NAME = "org/model"
MEGABYTE = 1 << 20
TINY = b'{"model_type": "llama"}'


def blob_of(size, seed=0):
    return random.Random(seed).randbytes(size)


def model(size=50_000, seed=0):
    return {"config.json": TINY, "tokenizer.json": b"{}", "README.md": b"# A model\n" * 2000,
            "model.safetensors": blob_of(size, seed), "pytorch_model.bin": blob_of(30_000, 1),
            "onnx/model.onnx": blob_of(30_000, 2), "original/consolidated.00.pth": blob_of(30_000, 3)}


def weights(client):
    return (client.snapshot(NAME) / "model.safetensors").read_bytes()


def leftovers(client):
    """Half files and notes about them."""
    return [path.name for path in (client.repository(NAME) / "blobs").glob("*.fettle.*")]


def download(client, expect=0, **environment):
    return client("download", f"--model_name_or_path={NAME}", expect=expect, **environment)


# ---------------------------------------------------------------------------------------------------------------------
# What is fetched


def test_fetches_what_a_model_needs_and_nothing_else(hub, client):
    files = model()
    hub.add(NAME, files)
    done = download(client)
    snapshot = client.snapshot(NAME)
    assert done.out == f"model_name_or_path: {snapshot}\n"
    assert sorted(path.name for path in snapshot.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    for name in ("config.json", "model.safetensors"):
        link = snapshot / name
        assert link.is_symlink() and not os.path.isabs(os.readlink(link))
        assert link.read_bytes() == files[name]
    assert (snapshot / "model.safetensors").resolve().name == hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert leftovers(client) == []


def test_is_quick_and_silent_to_the_hub_when_all_is_there(hub, client):
    hub.add(NAME, model())
    download(client)
    hub.forget()
    download(client)
    assert hub.paths() == [f"/api/models/{NAME}/revision/main"]
    hub.forget()
    download(client, HF_HUB_OFFLINE="1")
    download(client, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="", TRANSFORMERS_OFFLINE="1")
    assert hub.paths() == []


def test_a_branch_goes_on_to_its_new_commit(hub, client):
    repository = hub.add(NAME, model())
    download(client)
    repository.commit(model(seed=7))
    hub.forget()
    download(client)
    assert weights(client) == blob_of(50_000, 7)
    assert [path for path in hub.paths("hub") if path.endswith("config.json")] == []  # the same blob as before
    download(client, HF_HUB_OFFLINE="1")


def test_uses_the_cache_when_the_hub_does_not_answer(hub, client):
    hub.add(NAME, model())
    download(client)
    done = download(client, HF_ENDPOINT="http://127.0.0.1:9")
    assert f"{NAME} is used as it is in the hub cache" in done.err


def test_takes_the_shards_of_an_index(hub, client):
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    hub.add(NAME, {"config.json": TINY, "tokenizer.model": b"x", "model.safetensors.index.json": json.dumps(index).encode(),
                   "model-00001-of-00002.safetensors": blob_of(20_000, 1),
                   "model-00002-of-00002.safetensors": blob_of(20_000, 2), "consolidated.safetensors": blob_of(40_000, 3),
                   "pytorch_model.bin.index.json": b"{}"})
    download(client)
    names = {path.name for path in client.snapshot(NAME).iterdir()}
    assert names == {"config.json", "tokenizer.model", "model.safetensors.index.json",
                     "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}


def test_hundreds_of_files_need_no_hundreds_of_descriptors(hub, client):
    files = {"config.json": TINY, "model.safetensors": blob_of(20_000)}
    files |= {f"additional_chat_templates/{i}.jinja": b"%d" % i for i in range(300)}
    hub.add(NAME, files)
    done = client.finish(subprocess.Popen(
        ["sh", "-c", "ulimit -n 256 && exec \"$@\"", "sh", find_program("fettle"), "download", f"--model_name_or_path={NAME}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=client.environment))
    assert "(files 65-128 of 302)" in done.err
    assert len(list((client.snapshot(NAME) / "additional_chat_templates").iterdir())) == 300
    assert leftovers(client) == []


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, client):
    repository = hub.add(NAME, model())
    commit = repository.commit(model(seed=5), branch="refs/pr/1")
    for revision in ("refs/pr/1", commit):
        done = client("download", f"--model={NAME}", f"--model_revision={revision}")
        assert done.out.strip().endswith(f"snapshots/{commit}")
    assert not (client.repository(NAME) / "refs/main").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Errors


def refused(client, code, *parts, arguments=(f"--model_name_or_path={NAME}",), **environment):
    done = client("download", *arguments, expect=code, **environment)
    assert done.err.count("error: ") == 1 and "; " in done.error
    for part in parts:
        assert part in done.error, done.error
    return done


def test_a_missing_repository_without_and_with_a_token(hub, client):
    refused(client, 77, f"model_name_or_path: {NAME}", "private or does not exist", "HF_TOKEN")
    hub.known_tokens.add(TOKEN)
    refused(client, 66, "neither a local folder nor a repository on", "check the name", HF_TOKEN=TOKEN)


def test_a_refused_token(hub, client):
    hub.add(NAME, model())
    refused(client, 77, "refuses the token in HF_TOKEN", HF_TOKEN=TOKEN)


def test_another_host_that_refuses_says_nothing_about_the_token(hub, client):
    hub.add(NAME, model(), private_to=[TOKEN])
    hub.misbehave("/lfs/", status=403)
    refused(client, 69, f"{hub.cdn}, to which the hub redirects, answers 403", "allow that host in the proxy",
            HF_TOKEN=TOKEN)


def test_a_private_repository(hub, client):
    hub.add(NAME, model(), private_to=[TOKEN])
    refused(client, 77, "no token is given")
    download(client, HF_TOKEN=TOKEN)


def test_a_gated_repository(hub, client):
    hub.add(NAME, model(), gated_to=[])
    hub.known_tokens.add(TOKEN)
    refused(client, 77, "is gated, and no token is given", f"accept the licence at {hub.endpoint}/{NAME}")
    refused(client, 77, "is gated", "has no access", f"accept the licence at {hub.endpoint}/{NAME} with this account",
            HF_TOKEN=TOKEN)
    assert leftovers(client) == []  # no room stays reserved for what will not come


def test_a_missing_revision(hub, client):
    hub.add(NAME, model())
    refused(client, 66, "has no revision 'v9'", arguments=(f"--model={NAME}", "--model_revision=v9"))


def test_a_file_that_vanishes(hub, client):
    hub.add(NAME, model())
    hub.misbehave("resolve/.*/tokenizer.json", status=404, headers={"X-Error-Code": "EntryNotFound"})
    refused(client, 66, "has no file tokenizer.json")


def test_too_many_requests(hub, client):
    hub.add(NAME, model())
    hub.misbehave("/api/", status=429, headers={"Retry-After": "0"}, where="hub")
    done = refused(client, 69, "asks for fewer requests (429)")
    assert len(hub.paths()) == 5 and done.err.count("trying again in 0.0 s") == 4


def test_retry_after_is_waited(hub, client):
    hub.add(NAME, model())
    hub.misbehave("/api/", status=429, headers={"Retry-After": "1"}, times=1)
    began = time.monotonic()
    download(client)
    assert time.monotonic() - began >= 1


def test_a_hub_that_is_down(hub, client):
    hub.add(NAME, model())
    hub.misbehave("/api/", status=503)
    refused(client, 69, "answers 503")
    refused(client, 69, "cannot be reached", HF_ENDPOINT="http://127.0.0.1:9")
    refused(client, 69, "cannot be reached", HF_ENDPOINT=hub.endpoint.replace("http:", "https:"))  # TLS to plain HTTP
    refused(client, 78, "HF_ENDPOINT", HF_ENDPOINT="file:///etc")


def test_an_answer_that_is_no_hubs(hub, client):
    hub.add(NAME, model())
    hub.misbehave("/revision/", body=b"<html>Log in to the guest network</html>")
    refused(client, 69, "does not answer with a commit")


def test_a_stalled_connection(hub, client):
    hub.add(NAME, model())
    hub.misbehave("/lfs/", stall_after=1000, times=1)
    download(client)  # the next attempt goes on
    assert weights(client) == blob_of(50_000)


def test_offline_and_not_in_the_cache(hub, client):
    hub.add(NAME, model())
    refused(client, 66, "is not in the hub cache", "HF_HUB_OFFLINE", HF_HUB_OFFLINE="1")
    assert hub.paths() == []


def test_only_pickles(hub, client):
    hub.add(NAME, {"config.json": TINY, "pytorch_model.bin": blob_of(20_000)})
    refused(client, 65, "has no safetensors", "pickle")
    hub.add(NAME, {"model.Q4.gguf": blob_of(20_000)})
    refused(client, 66, "has GGUF files and no safetensors")
    hub.add(NAME, {"adapter_config.json": b"{}", "adapter_model.safetensors": blob_of(20_000)})
    refused(client, 66, "is a LoRA adapter", "adapter_name_or_path")


def test_a_full_disk_is_known_before(hub, client):
    hub.add(NAME, model())
    hub.misbehave("/tree/", body=json.dumps([
        {"type": "file", "path": "model.safetensors", "size": 1 << 50, "oid": "0" * 40, "lfs": {"oid": "1" * 64}}]).encode())
    refused(client, 74, "are to be downloaded to", "are free there", "make room")
    assert leftovers(client) == [] and hub.sent_bytes("model.safetensors") == 0


def test_paths_that_lead_out_of_the_cache_are_not_taken(hub, client):
    entry = {"type": "file", "size": 3, "oid": "0" * 40}
    hub.add(NAME, model())
    hub.misbehave("/tree/", body=json.dumps(
        [entry | {"path": path} for path in ("../config.json", "/etc/x.json", "a/../../x.json")]).encode())
    refused(client, 66, "has neither model.safetensors nor")


# ---------------------------------------------------------------------------------------------------------------------
# Transfers that go wrong


def test_cut_connections_go_on_where_they_ended(hub, client):
    hub.add(NAME, model(6 * MEGABYTE))
    hub.misbehave("/lfs/", cut_after=300_000)  # every connection
    download(client)
    assert weights(client) == blob_of(6 * MEGABYTE)
    assert hub.sent_bytes("/lfs/") == 6 * MEGABYTE  # not a byte twice


def test_a_wrong_content_length(hub, client):
    hub.add(NAME, model())
    hub.misbehave("/lfs/", wrong_length=5000, times=2)
    download(client)
    assert weights(client) == blob_of(50_000)


def test_a_server_without_ranges(hub, client):
    hub.add(NAME, model(6 * MEGABYTE))
    hub.misbehave("/lfs/", ignore_range=True)
    done = download(client)
    assert weights(client) == blob_of(6 * MEGABYTE)
    assert "ignores ranges" in done.err


@pytest.mark.parametrize("times", [1, 3])
def test_a_server_that_ignores_some_ranges(hub, client, times):
    size = 8 * MEGABYTE
    hub.add(NAME, model(size))
    hub.misbehave("/lfs/", ignore_range=True, times=times)
    hub.misbehave("/lfs/", bytes_per_second=2_000_000)  # the others are at their pieces meanwhile
    done = download(client)
    assert weights(client) == blob_of(size) and leftovers(client) == []
    assert "fetching them again" not in done.err
    assert f"downloaded {NAME}: 8.4 MB in" in done.err  # only where the sum of what came is right at the end


def test_wrong_bytes_are_fetched_again_and_then_refused(hub, client):
    hub.add(NAME, model())
    hub.misbehave("/lfs/", wrong_bytes=True, times=1)
    done = download(client)
    assert "fetching them again" in done.err and weights(client) == blob_of(50_000)
    hub.repositories["models"][NAME].commit(model(seed=3))
    hub.misbehave("/lfs/", wrong_bytes=True)
    refused(client, 69, "model.safetensors: the bytes that arrive are not those that the hub names")
    assert weights(client) == blob_of(50_000)  # the branch still leads to what is whole


def test_small_files_are_verified_too(hub, client):
    hub.add(NAME, model())
    hub.misbehave("resolve/.*/config.json", wrong_bytes=True)
    refused(client, 69, "config.json: the bytes that arrive")


def test_server_errors_in_a_transfer(hub, client):
    hub.add(NAME, model(3 * MEGABYTE))
    hub.misbehave("/lfs/", status=500, times=3)
    download(client)
    assert weights(client) == blob_of(3 * MEGABYTE)


def test_a_certain_error_waits_for_no_other_connection(hub, client):
    hub.add(NAME, model())
    hub.misbehave("/lfs/", status=429, headers={"Retry-After": "60"})
    hub.misbehave("resolve/.*/tokenizer.json", status=404)
    began = time.monotonic()
    refused(client, 66, "has no file tokenizer.json")
    assert time.monotonic() - began < 30


# ---------------------------------------------------------------------------------------------------------------------
# Resuming, and several processes


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_loses_next_to_nothing(hub, client, number):
    size = 32 * MEGABYTE
    hub.add(NAME, model(size))
    hub.misbehave("/lfs/", bytes_per_second=400_000)
    process = client.start("download", f"--model_name_or_path={NAME}")
    while hub.sent_bytes("/lfs/") < 4 * MEGABYTE and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    client.finish(process, expect=-number if number == signal.SIGKILL else 75)
    time.sleep(0.3)  # until the servers have seen it
    before = hub.sent_bytes("/lfs/")
    assert 4 * MEGABYTE <= before < size
    hub.faults.clear()
    hub.forget()
    done = download(client)
    assert weights(client) == blob_of(size) and leftovers(client) == []
    assert "of them are here already" in done.err
    again = before + hub.sent_bytes("/lfs/") - size
    assert again < 5 * MEGABYTE, "more was fetched again than can have been under way in eight connections' buffers"


def test_two_processes_download_once(hub, client):
    size = 4 * MEGABYTE
    hub.add(NAME, model(size))
    hub.misbehave("/lfs/", bytes_per_second=600_000)
    processes = [client.start("download", f"--model_name_or_path={NAME}") for _ in range(3)]
    done = [client.finish(process) for process in processes]
    assert len({process.out for process in done}) == 1
    assert sum("waiting for another process that downloads" in process.err for process in done) >= 1
    assert hub.sent_bytes("/lfs/") == size
    assert weights(client) == blob_of(size)


def test_progress_is_a_line_every_few_seconds(hub, client):
    hub.add(NAME, model(3 * MEGABYTE))
    hub.misbehave("/lfs/", bytes_per_second=150_000)  # three pieces of a megabyte: seven seconds
    done = download(client)
    assert f"downloading {NAME}: 3.1 MB" in done.err
    assert f"{NAME}: " in done.err and " left" in done.err and "\r" not in done.err
    assert f"downloaded {NAME}: 3.1 MB in" in done.err


def test_a_terminal_that_goes_away_ends_no_download(hub, client):
    hub.add(NAME, model(3 * MEGABYTE))
    hub.misbehave("/lfs/", bytes_per_second=600_000)
    ours, theirs = pty.openpty()
    process = subprocess.Popen([find_program("fettle"), "download", f"--model_name_or_path={NAME}"], stderr=theirs,
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=client.environment)
    os.close(theirs)
    seen = b""
    while b"\x1b[K" not in seen:  # the line that is drawn anew
        seen += os.read(ours, 1000)
    os.close(ours)
    assert process.wait(60) == 0
    assert weights(client) == blob_of(3 * MEGABYTE)


# ---------------------------------------------------------------------------------------------------------------------
# TLS and proxies


@pytest.fixture
def certificate(tmp_path):
    """A certificate that no authority of the system has signed."""
    files = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=hub",
                    "-addext", "subjectAltName=IP:127.0.0.1", "-out", files[0], "-keyout", files[1]],
                   check=True, capture_output=True)
    return files


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_a_certificate_authority_of_ones_own(tmp_path, certificate, variable):
    with hub_server.Hub(certificate) as hub:
        hub.add(NAME, model())
        client = Client(hub, tmp_path)
        done = refused(client, 69, "cannot be reached", "certificate", "SSL_CERT_FILE")
        assert "trying again" not in done.err  # it would not help
        download(client, **{variable: str(certificate[0])})
        assert weights(client) == blob_of(50_000)


def test_https_never_becomes_http(hub, tmp_path, certificate):
    with hub_server.Hub(certificate) as secure:
        secure.add(NAME, model())
        secure.misbehave("resolve/.*/model.safetensors", redirect=f"{hub.endpoint}/stolen")
        refused(Client(secure, tmp_path), 69, "redirects from https to http://127.0.0.1",
                SSL_CERT_FILE=str(certificate[0]))
        assert hub.requests == []


def test_a_redirect_without_end(hub, client):
    hub.add(NAME, model())
    hub.misbehave("resolve/.*/model.safetensors", redirect=f"/{NAME}/resolve/main/model.safetensors")
    refused(client, 69, "redirects without end")


def test_a_proxy_of_the_environment(hub, client):
    hub.add(NAME, model())
    download(client, HF_ENDPOINT="http://hub.invalid", http_proxy=hub.endpoint, no_proxy="127.0.0.1")
    assert {request.headers["Host"] for request in hub.requests if request.server == "hub"} == {"hub.invalid"}


# ---------------------------------------------------------------------------------------------------------------------
# The token


def test_the_token_goes_to_the_hub_alone(hub, client):
    hub.add(NAME, model(), private_to=[TOKEN])
    download(client, HF_TOKEN=f"  {TOKEN}\n")
    assert "cdn" in {request.server for request in hub.requests}
    assert hub.authorizations("cdn") == []
    assert set(hub.authorizations("hub")) == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("place", ["HF_TOKEN_PATH", "home"])
def test_the_token_of_a_file(hub, client, tmp_path, place):
    hub.add(NAME, model(), private_to=[TOKEN])
    file = tmp_path / "hf/token" if place == "home" else tmp_path / "secret"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"{TOKEN}\n")
    download(client, **({} if place == "home" else {"HF_TOKEN_PATH": str(file)}))


@pytest.mark.parametrize("token", ["hf_two words", "hf_line\nbreak", "hf_bell\a", "hf_ümlaut"])
def test_a_token_that_no_header_may_have(hub, client, token):
    hub.add(NAME, model())
    done = refused(client, 77, "the token in HF_TOKEN has", HF_TOKEN=token)
    assert "hf_" not in done.err and hub.requests == []


def test_the_token_is_not_in_what_a_debug_log_says(hub, client):
    hub.add(NAME, model(), private_to=[TOKEN])
    done = client("download", f"--model={NAME}", "--log_level=debug", HF_TOKEN=TOKEN)  # finish() looks for it
    assert done.returncode == 0
    refused(client, 64, "set HF_TOKEN", arguments=(f"--model={NAME}", "--token=x"))
