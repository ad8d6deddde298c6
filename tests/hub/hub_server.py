# SPDX-License-Identifier: Apache-2.0
"""A small hub on the loopback interface, with a second server in the role of its CDN, that can misbehave on demand.

    with Hub() as hub:
        hub.add("org/model", {"config.json": b"{}", "model.safetensors": weights})
        hub.misbehave("model.safetensors", cut_after=100_000, times=3)
        subprocess.run([...], env={"HF_ENDPOINT": hub.endpoint, ...})
        assert hub.sent_bytes("model.safetensors") == len(weights)

Routes and headers are those of the Hugging Face Hub that huggingface_hub 2.4 and Fettle use: /api/{models,datasets}/
{name}/revision/{revision}, …/tree/{commit} in pages, …/resolve/{revision}/{path} by GET and HEAD, with X-Repo-Commit,
X-Linked-Etag, X-Linked-Size, ETag and X-Error-Code. Files of LARGE bytes and more are "large": they redirect to the CDN
and are named by their SHA-256, the others by git's SHA-1.
"""

import contextlib
import dataclasses
import functools
import hashlib
import http.server
import json
import re
import ssl
import threading
import time
import urllib.parse

LARGE = 10_000
TREE_PAGE = 3  # files in a page of a listing, few so that every listing has several


@dataclasses.dataclass
class File:
    content: bytes

    @property
    def is_large(self):
        return len(self.content) >= LARGE

    @functools.cached_property
    def blob_id(self):
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @functools.cached_property
    def sha256(self):
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self):
        return self.sha256 if self.is_large else self.blob_id


@dataclasses.dataclass
class Fault:
    """What the servers do wrong with requests whose path matches."""

    pattern: str
    times: int | None = None  # None: always
    where: str | None = None  # "hub" or "cdn"; None: both
    status: int | None = None
    headers: dict = dataclasses.field(default_factory=dict)
    cut_after: int | None = None  # bytes of the body, then the connection is closed
    stall_after: int | None = None  # bytes of the body, then nothing, for ten seconds
    ignore_range: bool = False
    wrong_bytes: bool = False
    wrong_length: int | None = None  # added to Content-Length
    bytes_per_second: int | None = None
    redirect: str | None = None
    body: bytes | None = None
    chunked: bool = False  # no Content-Length and no ranges
    web_files: dict = dataclasses.field(default_factory=dict)  # what is at /web/ after this request


@dataclasses.dataclass
class Request:
    server: str  # hub or cdn
    method: str
    path: str  # without the query
    headers: dict
    sent: int = 0  # bytes of the body


class Repository:
    def __init__(self, files, private_to=None, gated_to=None):
        self.commits = {}
        self.branches = {}
        self.private_to = private_to  # the tokens that may read it; None: everybody
        self.gated_to = gated_to
        self.commit(files)

    def commit(self, files, branch="main"):
        """Another commit on a branch; returns its name."""
        listing = {path: File(content) for path, content in files.items()}
        text = json.dumps([[path, file.etag] for path, file in sorted(listing.items())]) + branch
        name = hashlib.sha1(text.encode()).hexdigest()
        self.commits[name] = listing
        self.branches[branch] = name
        return name


class Hub:
    def __init__(self, certificate=None, address="127.0.0.1"):
        """`certificate`: (certificate file, key file), then both servers speak https. `address`: where both listen."""
        self.certificate = certificate
        self.address = address
        self.repositories = {"models": {}, "datasets": {}}
        self.faults = []
        self.requests = []
        self.web_files = {}  # plain files at /web/…, for URLs that are no hub's
        self.web_headers = {}  # of such a file, in place of its ETag
        self.known_tokens = set()
        self._lock = threading.Lock()

    def __enter__(self):
        self._servers = [self._start(name) for name in ("hub", "cdn")]
        return self

    def __exit__(self, *_):
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _start(self, name):
        hub = self

        class Named(Handler):
            server_name = name
            owner = hub

        server = http.server.ThreadingHTTPServer((self.address, 0), Named)
        server.daemon_threads = True
        if self.certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self.certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    @property
    def endpoint(self):
        return f"{self._scheme}://{self.address}:{self._servers[0].server_port}"

    @property
    def cdn(self):
        return f"{self._scheme}://{self.address}:{self._servers[1].server_port}"

    @property
    def _scheme(self):
        return "https" if self.certificate else "http"

    def add(self, name, files, kind="models", **access):
        repository = self.repositories[kind][name] = Repository(files, **access)
        for tokens in (repository.private_to, repository.gated_to):
            self.known_tokens |= set(tokens or ())
        return repository

    def misbehave(self, pattern, **fault):
        self.faults.append(Fault(pattern, **fault))

    def fault_for(self, server, path):
        with self._lock:
            for fault in self.faults:
                if fault.times == 0 or fault.where not in (None, server) or not re.search(fault.pattern, path):
                    continue
                if fault.times is not None:
                    fault.times -= 1
                return fault
        return Fault("")

    def note(self, request):
        with self._lock:
            self.requests.append(request)

    def forget(self):
        with self._lock:
            self.requests.clear()

    def sent_bytes(self, pattern=""):
        """Of the bodies of all files whose path matches; what a redirect led to counts under the first path."""
        with self._lock:
            return sum(r.sent for r in self.requests if "/api/" not in r.path and re.search(pattern, r.path))

    def paths(self, server=None):
        with self._lock:
            return [r.path for r in self.requests if server in (None, r.server)]

    def authorizations(self, server):
        """What came as Authorization."""
        with self._lock:
            return [r.headers["Authorization"] for r in self.requests if r.server == server and "Authorization" in r.headers]


class Refused(Exception):
    def __init__(self, status, code="", message=""):
        super().__init__(status)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message or code}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_name = ""
    owner = None
    form = {}

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
        is_json = "json" in self.headers.get("Content-Type", "")
        self.form = json.loads(body) if is_json else urllib.parse.parse_qs(body)
        self.answer()

    def answer(self):
        parsed = urllib.parse.urlsplit(self.path)
        self.query = urllib.parse.parse_qs(parsed.query)
        self.request_note = Request(self.server_name, self.command, urllib.parse.unquote(parsed.path), dict(self.headers))
        self.owner.note(self.request_note)
        self.fault = self.owner.fault_for(self.server_name, self.request_note.path)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            try:
                if self.fault.redirect:
                    self.send(302, {"Location": self.fault.redirect}, b"")
                elif self.fault.status:
                    self.send(self.fault.status, self.fault.headers, b"no\n")
                else:
                    self.route(self.request_note.path)
            except Refused as refused:
                self.send(refused.status, refused.headers, b"refused\n")

    def route(self, path):
        if path.startswith("/web/"):
            return self.web(path)
        if self.server_name == "cdn":
            return self.cdn(path)
        match = re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+|[^/]+?)(?:/(revision|tree|paths-info)/(refs/[^/]+/[^/]+|[^/]+)"
                             r"(?:/(.+))?)?", path)
        if match:
            return self.api(*match.groups())
        match = re.fullmatch(r"/(datasets/)?([^/]+(?:/[^/]+)?)/resolve/([^/]+|refs/[^/]+/[^/]+)/(.+)", path)
        if not match:
            raise Refused(404)
        kind, name, revision, file = match.groups()
        commit, listing = self.find("datasets" if kind else "models", name, revision)
        if file not in listing:
            raise Refused(404, "EntryNotFound", "Entry not found")
        return self.file(commit, listing[file], file)

    def find(self, kind, name, revision):
        """The commit and its files, if the token may see them."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.owner.known_tokens:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        repository = self.owner.repositories[kind].get(name)
        hidden = repository is None or (repository.private_to is not None and token not in repository.private_to)
        if hidden:
            raise Refused(404 if token else 401, "RepoNotFound", "Repository not found")
        if repository.gated_to is not None and token not in repository.gated_to and "/api/" not in self.path:
            raise Refused(403 if token else 401, "GatedRepo", f"Access to {kind} {name} is restricted.")
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, repository.commits[commit]

    def api(self, kind, name, what, revision, folder):
        commit, listing = self.find(kind, name, revision or "main")
        paths = sorted(listing)
        if what == "tree":
            return self.tree(kind, name, revision, folder, listing)
        if what == "paths-info":
            wanted = [path for path in self.form.get("paths", []) if path in listing]
            return self.send_json([self.entry(path, listing[path]) for path in wanted])
        return self.send_json({"_id": "1", "id": name, "modelId": name, "sha": commit, "private": False, "gated": False,
                               "tags": [], "downloads": 0, "likes": 0, "siblings": [{"rfilename": path} for path in paths]})

    @staticmethod
    def entry(path, file):
        entry = {"type": "file", "oid": file.blob_id, "size": len(file.content), "path": path}
        if file.is_large:
            entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 130}
        return entry

    def tree(self, kind, name, revision, folder, listing):
        """A folder's files and folders, by pages; with recursive=true also what is below them."""
        prefix = f"{folder}/" if folder else ""
        paths = [path for path in sorted(listing) if path.startswith(prefix)]
        if folder and not paths:
            raise Refused(404, "EntryNotFound", "Entry not found")
        folders = set()
        for path in paths:
            parts = path.removeprefix(prefix).split("/")[:-1]
            folders |= {prefix + "/".join(parts[:depth + 1]) for depth in range(len(parts))}
        if self.query.get("recursive", ["false"])[0].lower() != "true":
            paths = [path for path in paths if "/" not in path.removeprefix(prefix)]
            folders = {path for path in folders if "/" not in path.removeprefix(prefix)}
        entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in sorted(folders)]
        entries += [self.entry(path, listing[path]) for path in paths]
        begin = int(self.query.get("cursor", ["0"])[0])
        headers = {}
        if begin + TREE_PAGE < len(entries):
            host = f"{self.owner.endpoint.split(':')[0]}://{self.headers['Host']}"
            place = f"{host}/api/{kind}/{name}/tree/{urllib.parse.quote(revision, safe='')}"
            place += f"/{urllib.parse.quote(folder)}" if folder else ""
            recursive = self.query.get("recursive", ["false"])[0]
            headers["Link"] = f'<{place}?recursive={recursive}&cursor={begin + TREE_PAGE}>; rel="next"'
        return self.send_json(entries[begin:begin + TREE_PAGE], headers)

    def file(self, commit, file, path):
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.blob_id}"', "Accept-Ranges": "bytes"}
        if not file.is_large:
            return self.send_content(file.content, headers)
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content)),
                    "Location": f"{self.owner.cdn}/lfs/{file.sha256}/{path}?signature=0123"}
        return self.send(302, headers, b"")

    def cdn(self, path):
        match = re.match(r"/lfs/([0-9a-f]{64})/", path)
        for repositories in self.owner.repositories.values():
            for repository in repositories.values():
                for listing in repository.commits.values():
                    for file in listing.values():
                        if match and file.is_large and file.sha256 == match.group(1):
                            return self.send_content(file.content, {"ETag": f'"{file.sha256}"'})
        raise Refused(404)

    def web(self, path):
        content = self.owner.web_files.get(path.removeprefix("/web/"))
        if content is None:
            raise Refused(404)
        self.owner.web_files |= self.fault.web_files
        headers = self.owner.web_headers.get(path.removeprefix("/web/"), {"ETag": f'"{hashlib.md5(content).hexdigest()}"'})
        return self.send_content(content, headers)

    def send_json(self, value, headers=None):
        self.send(200, {"Content-Type": "application/json", **(headers or {})}, json.dumps(value).encode())

    def send_content(self, content, headers):
        if self.fault.wrong_bytes:
            content = bytes([content[0] ^ 1]) + content[1:] if content else content
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted or self.fault.ignore_range or self.fault.chunked:
            return self.send(200, headers, content)
        first = int(wanted.group(1))
        last = min(int(wanted.group(2) or len(content) - 1), len(content) - 1)
        if first > last:
            return self.send(416, {"Content-Range": f"bytes */{len(content)}"}, b"")
        headers = {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"}
        return self.send(206, headers, content[first:last + 1])

    def send(self, status, headers, body):
        if self.fault.body is not None and status < 300:
            body = self.fault.body
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        if self.fault.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body) + (self.fault.wrong_length or 0)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault.chunked:
            self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
            return
        is_content = status in (200, 206)
        end = len(body)
        if is_content and self.fault.cut_after is not None:
            end = min(end, self.fault.cut_after)
        if is_content and self.fault.stall_after is not None:
            end = min(end, self.fault.stall_after)
        step = 65536 if not self.fault.bytes_per_second else max(1, self.fault.bytes_per_second // 20)
        for begin in range(0, end, step):
            piece = body[begin:min(end, begin + step)]
            self.wfile.write(piece)
            self.request_note.sent += len(piece)
            if self.fault.bytes_per_second:
                time.sleep(0.05)
        self.wfile.flush()
        if end < len(body) or self.fault.wrong_length:
            if self.fault.stall_after is not None and is_content:
                time.sleep(10)
            self.close_connection = True
